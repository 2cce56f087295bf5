// A publisher, the journal, a keeper of files and a waiter, each a thread, over two rings and a real folder.
//
//   journal_stress FOLDER interval|always|never SECONDS SEED
//
// 1. Whatever the waiter is told is logged can be read from the files at that moment.
// 2. durable <= logged <= published, always.
// 3. What is said to be indexed is found by key, in one of the memtables that the journal feeds and that others replace meanwhile.
// 4. In the end everything published is durable, and the files hold every row once, in order.
// Nothing here races by design: ThreadSanitizer has no exceptions. Exit code 1 with a line beginning with FAILED otherwise.
#include <dirent.h>
#include <sys/stat.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "journal.hpp"
#include "log_scan.hpp"
#include "stress.hpp"

using namespace stress;

namespace {

constexpr int TOPICS = 2;
constexpr uint32_t ROW_BYTES[TOPICS] = {128, 24};
constexpr uint64_t SLOTS[TOPICS] = {1024, 256};
constexpr uint64_t FILE_BYTES = 4 << 20;
constexpr uint32_t EPOCH = 1;
constexpr size_t SPARES = 2;

struct Ring {
    char *data;
    DataHeader *header;
    ControlHeader *control;

    explicit Ring(int topic) {
        data = map_shared(-1, ring_bytes(ROW_BYTES[topic], SLOTS[topic]), PROT_READ | PROT_WRITE);
        control = reinterpret_cast<ControlHeader *>(map_shared(-1, sizeof(ControlHeader), PROT_READ | PROT_WRITE));
        format_ring(data, ROW_BYTES[topic], SLOTS[topic]);
        header = reinterpret_cast<DataHeader *>(data);
    }
    uint64_t at(Watermark which) const { return load_acquire(header->watermarks[which].sequence); }
};

// What storage/log.py's keeper does.
void make_spares(LogWriter &log, int folder_fd, int &number) {
    while (log.spare_count() < SPARES) {
        char name[32];
        std::snprintf(name, sizeof name, "spare-1-%d", ++number);
        const int fd = openat(folder_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 || posix_fallocate(fd, 0, FILE_BYTES) != 0 || flock(fd, LOCK_EX) != 0) {
            log.refuse_spare(errno);
            return;
        }
        log.add_spare(fd, name);
    }
}

// --- reading the files back -------------------------------------------------------------------------------------------

std::vector<char> read_file(int folder_fd, uint64_t number) {
    char name[32];
    std::snprintf(name, sizeof name, "%010llu.log", static_cast<unsigned long long>(number));
    std::vector<char> bytes;
    const int fd = openat(folder_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return bytes;
    bytes.resize(FILE_BYTES);
    size_t done = 0;
    while (done < bytes.size()) {
        const ssize_t got = pread(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
        if (got <= 0) break;
        done += static_cast<size_t>(got);
    }
    close(fd);
    bytes.resize(done);
    return bytes;
}

LogFileHeader header_of(const std::vector<char> &file, uint64_t number) {
    LogFileHeader header;
    if (file.size() < sizeof header) fail("file %llu is too short", static_cast<unsigned long long>(number));
    std::memcpy(&header, file.data(), sizeof header);
    if (header.crc != log_header_crc(header) || header.file_number != number || header.epoch != EPOCH)
        fail("file %llu has a wrong header", static_cast<unsigned long long>(number));
    return header;
}

// Scan one file; `next` is what each topic's next row must be, and moves on. Checks every row.
void scan_file(const std::vector<char> &file, uint64_t number, uint64_t limit, uint64_t next[TOPICS], bool *closed = nullptr) {
    const LogFileHeader header = header_of(file, number);
    std::vector<FrameEntry> frames;
    const LogBytes log{file.data(), limit < file.size() ? limit : file.size(), header.start_position, header.epoch};
    scan_frames(log, LOG_HEADER_BYTES, frames);
    for (const FrameEntry &frame : frames) {
        if (closed != nullptr) *closed = frame.kind == FRAME_CLOSE;
        if (frame.kind == FRAME_TOPIC) {
            if (next[frame.topic] == 0) next[frame.topic] = frame.first_sequence;
            if (next[frame.topic] != frame.first_sequence)
                fail("file %llu begins topic %d at %llu, not at %llu", static_cast<unsigned long long>(number), frame.topic,
                     static_cast<unsigned long long>(frame.first_sequence), static_cast<unsigned long long>(next[frame.topic]));
        }
        if (frame.kind != FRAME_ROWS) continue;
        if (frame.topic >= TOPICS || frame.row_bytes != ROW_BYTES[frame.topic]) fail("a frame of no topic of ours");
        const char *row = file.data() + frame.offset + FRAME_HEADER_BYTES;
        for (uint32_t index = 0; index < frame.row_count; ++index, row += frame.row_bytes) {
            if (!row_is_whole(row, frame.row_bytes, next[frame.topic]))
                fail("file %llu, topic %d: row %llu is wrong or not the next", static_cast<unsigned long long>(number), frame.topic,
                     static_cast<unsigned long long>(next[frame.topic]));
            ++next[frame.topic];
        }
    }
}

// The newest file at this moment.
uint64_t newest_file(int folder_fd, uint64_t number) {
    char name[32];
    for (;; ++number) {
        std::snprintf(name, sizeof name, "%010llu.log", static_cast<unsigned long long>(number + 1));
        if (faccessat(folder_fd, name, F_OK, 0) != 0) return number;
    }
}

// --- the threads ------------------------------------------------------------------------------------------------------

constexpr int INDEXED_TOPIC = 0;
constexpr uint64_t MEMTABLE_BYTES = 1 << 20;

// The first topic's rows by key, which is their sequence. Memtables are replaced when they are full, and whenever somebody likes.
class Index {
  public:
    Index() : layout_({{0, 8, KEY_UNSIGNED}}) { rotate(); }

    void rotate() {
        const std::lock_guard lock(mutex_);
        memtables_.push_back(std::make_unique<Memtable>(layout_, ROW_BYTES[INDEXED_TOPIC], MEMTABLE_BYTES,
                                                         std::make_shared<MemoryPool>(0)));
        feed.set_active(memtables_.back().get());
    }

    bool has(uint64_t sequence) {
        char row[24] = {};
        uint64_t key[1];
        std::memcpy(row, &sequence, 8);
        layout_.encode(row, key);
        const std::lock_guard lock(mutex_);
        for (const auto &memtable : memtables_) {
            bool tombstone;
            const char *found = memtable->find(key, hash_key(key, 1), feed.visible(), tombstone);
            if (found != nullptr) return row_is_whole(found, ROW_BYTES[INDEXED_TOPIC], sequence);
        }
        return false;
    }

    uint64_t row_count() {
        const std::lock_guard lock(mutex_);
        uint64_t count = 0;
        for (const auto &memtable : memtables_) count += memtable->count();
        return count;
    }

    Feed feed;

  private:
    const KeyLayout layout_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Memtable>> memtables_;
};

bool make_room(void *index, uint32_t) {
    static_cast<Index *>(index)->rotate();
    return true;
}

struct Work {
    Index index;
    std::vector<Ring> rings;
    std::unique_ptr<LogWriter> log;
    std::unique_ptr<Journal> journal;
    int folder_fd;
    bool waits_for_disk;
    std::atomic<bool> published_all{false}, stop_keeper{false};
};

void publish_for(Work &work, double seconds, uint64_t seed) {
    RingWriter writers[TOPICS];
    std::vector<Publisher> publishers;
    for (int topic = 0; topic < TOPICS; ++topic) {
        writers[topic].open(work.rings[topic].data, work.rings[topic].control, true);
        writers[topic].journal_asleep = work.journal->asleep();
        publishers.emplace_back(writers[topic], seed + static_cast<uint64_t>(topic));
    }
    Random random(seed);
    const int64_t end_ns = monotonic_ns() + static_cast<int64_t>(seconds * 1e9);
    while (monotonic_ns() < end_ns) {
        const size_t topic = random.below(TOPICS);
        if (!publishers[topic].publish_some()) fail("publisher: no room within 20 s, or the log has stopped");
        if (load_relaxed(*writers[topic].journal_asleep) != 0) work.journal->kick();
        if (random.below(256) == 0) {  // long enough now and then for the journal to fall asleep
            const timespec pause{0, random.below(8) == 0 ? 30'000'000 : 300'000};
            nanosleep(&pause, nullptr);
        }
    }
    work.published_all = true;
}

void keep(Work &work, int &number) {
    uint64_t newest = 0;
    while (!work.stop_keeper) {
        pollfd wanted{work.log->wants_spare_fd(), POLLIN, 0};
        if (poll(&wanted, 1, 100) == 1) {
            uint64_t count;
            (void)!read(work.log->wants_spare_fd(), &count, sizeof count);
        }
        if (work.log->file_number() < newest) fail("keeper: the log went back to an older file");
        newest = work.log->file_number();  // as it does to know which files are old enough to go
        make_spares(*work.log, work.folder_fd, number);
    }
}

// Wait for what was published to be logged, or durable, and look whether the files have it. Returns how often it did.
uint64_t wait_and_look(Work &work, uint64_t seed) {
    Random random(seed);
    uint64_t looks = 0, file_number = 1;
    do {
        const Watermark which = work.waits_for_disk && random.below(2) == 0 ? DURABLE : LOGGED;
        const size_t topic = random.below(TOPICS);
        Ring &ring = work.rings[topic];
        const uint64_t wanted = ring.at(PUBLISHED);
        if (wanted == 0) continue;
        if (work.log->failure().error != 0) fail("waiter: the log has failed");  // as Writer.failure asks, from any thread
        work.journal->kick();
        const int64_t deadline = monotonic_ns() + 20'000'000'000;
        while (wait_for(*ring.header, *ring.control, which, wanted - 1, SLICE_NS, WAIT_FUTEX) != WAIT_MOVED) {
            if (load_relaxed(ring.header->status) != 0) fail("waiter: the journal has stopped");
            if (monotonic_ns() > deadline) fail("waiter: nothing is logged within 20 s");
        }
        const uint64_t durable = ring.at(DURABLE), logged = ring.at(LOGGED), published = ring.at(PUBLISHED);
        if (durable > logged || logged > published) fail("waiter: the watermarks are out of order");
        if (topic == INDEXED_TOPIC) {
            if (random.below(4) == 0) work.index.rotate();
            while (wait_for(*ring.header, *ring.control, INDEXED, wanted - 1, SLICE_NS, WAIT_FUTEX) != WAIT_MOVED)
                if (monotonic_ns() > deadline) fail("waiter: nothing is indexed within 20 s");
            const uint64_t sequence = wanted - random.below(std::min<uint64_t>(wanted, 5000));
            if (!work.index.has(sequence)) fail("waiter: row %llu is indexed and not found", static_cast<unsigned long long>(sequence));
        }
        file_number = newest_file(work.folder_fd, file_number);
        uint64_t next[TOPICS] = {};
        scan_file(read_file(work.folder_fd, file_number), file_number, FILE_BYTES, next);
        if (next[topic] <= wanted)
            fail("waiter: topic %zu, row %llu was said to be logged, the files end before %llu", topic,
                 static_cast<unsigned long long>(wanted), static_cast<unsigned long long>(next[topic]));
        ++looks;
    } while (!work.published_all);
    return looks;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 5) fail("usage: journal_stress FOLDER interval|early|always|never SECONDS SEED");
    const std::string mode = argv[2];
    const SyncMode sync = mode == "always" ? SYNC_ALWAYS : mode == "never" ? SYNC_NEVER : SYNC_INTERVAL;
    const Rest rest = mode == "early" ? Rest{50'000, 200'000} : Journal::QUICK;
    const double seconds = std::atof(argv[3]);
    const uint64_t seed = std::strtoull(argv[4], nullptr, 10);
    alarm(120);  // whatever hangs dies of it
    barrier_register();

    Work work;
    work.folder_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (work.folder_fd < 0) fail("%s: %s", argv[1], std::strerror(errno));
    work.waits_for_disk = sync != SYNC_NEVER;
    work.log = std::make_unique<LogWriter>(work.folder_fd, 42, EPOCH, "stress", 1, 0, 0, FILE_BYTES, sync != SYNC_NEVER);
    work.journal = std::make_unique<Journal>(work.log.get(), sync, 1'000'000, rest, make_room, &work.index);
    for (int topic = 0; topic < TOPICS; ++topic) {
        work.rings.emplace_back(topic);
        work.log->add_topic("{\"name\":\"topic\"}", ROW_BYTES[topic], 1, 0);
        work.journal->add_ring(work.rings[topic].data, work.rings[topic].control,
                               topic == INDEXED_TOPIC ? &work.index.feed : nullptr);
    }
    int spare_number = 0;
    make_spares(*work.log, work.folder_fd, spare_number);
    if (const int error = work.log->open_first(); error != 0) fail("open_first: %s", std::strerror(error));

    int result = -1;
    uint64_t looks = 0;
    std::thread keeper([&] { keep(work, spare_number); });
    std::thread journal([&] { result = work.journal->run(); });
    std::thread waiter([&] { looks = wait_and_look(work, seed + 100); });
    publish_for(work, seconds, seed);
    waiter.join();
    work.journal->request_stop();
    journal.join();
    work.stop_keeper = true;
    keeper.join();

    if (result != 0) fail("the journal ended with %d (%s)", result, std::strerror(result));
    uint64_t next[TOPICS] = {1, 1};
    const uint64_t files = newest_file(work.folder_fd, 1);
    bool closed = false;
    for (uint64_t number = 1; number <= files; ++number) {
        const std::vector<char> file = read_file(work.folder_fd, number);
        const uint64_t limit = number < files ? header_of(read_file(work.folder_fd, number + 1), number + 1).previous_end : FILE_BYTES;
        scan_file(file, number, limit, next, &closed);
    }
    if (!closed) fail("the last frame is not a close");
    uint64_t rows = 0;
    for (int topic = 0; topic < TOPICS; ++topic) {
        const Ring &ring = work.rings[topic];
        const uint64_t published = ring.at(PUBLISHED);
        if (ring.at(LOGGED) != published || ring.at(DURABLE) != published) fail("not everything published is durable");
        if (next[topic] != published + 1)
            fail("topic %d: %llu rows were published, the files hold %llu", topic, static_cast<unsigned long long>(published),
                 static_cast<unsigned long long>(next[topic] - 1));
        rows += published;
    }
    const Ring &indexed = work.rings[INDEXED_TOPIC];
    if (indexed.at(INDEXED) != indexed.at(PUBLISHED) || work.index.row_count() != indexed.at(PUBLISHED))
        fail("not everything published is indexed once");
    std::printf("{\"rows\": %llu, \"files\": %llu, \"looks\": %llu, \"syncs\": %llu}\n", static_cast<unsigned long long>(rows),
                static_cast<unsigned long long>(files), static_cast<unsigned long long>(looks),
                static_cast<unsigned long long>(work.log->sync_count()));
    return 0;
}
