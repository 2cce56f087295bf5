// One writer and readers of every kind over one small ring, as fast as they can; every row accepted must be right.
//
//   ring_stress processes|threads SECONDS SEED
//
// Readers: two lossy ones, whose copies race with the writer by design and are believed only after `intact`; a reliable one
// from the first record on, which leaves half-way and must never be lapped; and one that comes, catches up, becomes reliable,
// and goes again. Processes map the ring read-only, as subscribers do. Threads share one mapping, for ThreadSanitizer, which
// cannot see across processes.
// Exit code 1 with a line beginning with FAILED when a torn row was accepted, one was missed, or a reliable reader was lapped.
#include <sys/prctl.h>
#include <sys/wait.h>

#include <thread>

#include "stress.hpp"

using namespace stress;

namespace {

constexpr uint32_t ROW_BYTES = 128;
constexpr uint64_t SLOTS = 256;
constexpr int READERS = 4;
constexpr unsigned TIMEOUT_S = 120;
const size_t RING_BYTES = ring_bytes(ROW_BYTES, SLOTS);

struct Tally {       // a reader's own, in memory that all share
    uint64_t read;   // rows accepted
    uint64_t lost;   // rows passed over
    uint64_t lapped; // times
    uint64_t voided; // batches copied and then not believed
    uint64_t torn;   // rows in those that were indeed torn
    uint64_t held;   // times it became reliable
};

struct Shared {
    char *data;  // the writer's
    int data_fd; // for readers in processes of their own; -1: they use the writer's mapping
    ControlHeader *control;
    Tally *tallies;
};

// Copying rows that the writer may be overwriting is a race, by design the only one of the ring: what comes of it is thrown
// away unless `intact` says otherwise. ThreadSanitizer must not look at this function, and looks at everything else.
__attribute__((noinline, no_sanitize("thread"))) void copy_racing(char *to, const char *from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 8)
        *reinterpret_cast<volatile uint64_t *>(to + at) = *reinterpret_cast<const volatile uint64_t *>(from + at);
}

class Reader {
  public:
    Reader(const char *name, const Shared &shared, int number, uint64_t seed)
        : name_(name), tally_(shared.tallies[number]), random_(seed) {
        const char *data = shared.data_fd < 0 ? shared.data : map_shared(shared.data_fd, RING_BYTES, PROT_READ);
        ring_.open(data, shared.control, PUBLISHED);
        copy_.resize(SLOTS * ROW_BYTES);
    }

    // What RingCursor.register does.
    void join(uint64_t cursor) {
        const uint32_t pid = static_cast<uint32_t>(getpid());
        slot_ = take_reader(*ring_.control, pid);
        if (slot_ < 0) fail("%s: no free entry in the reader table", name_);
        ring_.entry = &ring_.control->readers[slot_];
        ring_.entry->process_start = process_start(pid);
        store_relaxed(ring_.entry->policy, uint32_t{LOSSY});
        ring_.cursor = cursor;
        store_relaxed(ring_.entry->consumed, cursor);
        store_release(ring_.entry->owner, owner_word(pid, READER_ACTIVE));
    }

    // What RingCursor.hold_writer does.
    bool hold_writer() {
        store_release(ring_.entry->consumed, ring_.cursor);
        store_relaxed(ring_.entry->policy, uint32_t{RELIABLE});
        announce_readers(*ring_.control);
        if (ring_.cursor + ring_.slot_count / 4 >= load_acquire(ring_.header->watermarks[PUBLISHED].sequence) &&
            ring_.intact(ring_.cursor + 1)) {
            store_release(tally_.held, tally_.held + 1);
            return true;
        }
        store_relaxed(ring_.entry->policy, uint32_t{LOSSY});
        announce_readers(*ring_.control);
        return false;
    }

    void leave() { free_reader(*ring_.control, static_cast<uint32_t>(slot_), static_cast<uint32_t>(getpid())); }

    // A lossy batch. False when the ring is closed and everything read.
    bool read_lossy() {
        uint64_t first, count;
        switch (ring_.poll(1 + random_.below(SLOTS), first, count)) {
        case POLL_NOTHING: return wait();
        case POLL_LAPPED: {
            ++tally_.lapped;
            const uint64_t oldest = ring_.oldest(), newest = load_acquire(ring_.header->watermarks[PUBLISHED].sequence);
            const uint64_t resume_at = oldest + (newest > oldest ? (newest + 1 - oldest) / 4 : 0);
            tally_.lost += resume_at - first;
            ring_.cursor = resume_at - 1;
            return true;
        }
        case POLL_ROWS: break;
        }
        const uint64_t half = count / 2;
        copy_racing(copy_.data(), ring_.slot(first), half * ROW_BYTES);
        if (random_.below(8) == 0) nap();  // in the middle of a copy, so that the writer does come round
        copy_racing(copy_.data() + half * ROW_BYTES, ring_.slot(first + half), (count - half) * ROW_BYTES);
        if (ring_.intact(first)) {
            accept(copy_.data(), first, count);
        } else {
            ++tally_.voided;
            for (uint64_t row = 0; row < count; ++row)
                if (!row_is_whole(copy_.data() + row * ROW_BYTES, ROW_BYTES, first + row)) ++tally_.torn;
        }
        return true;
    }

    // A batch of a reader that holds the writer back: used in place, with plain loads, which must not race with anything.
    bool read_held() {
        uint64_t first, count;
        switch (ring_.poll(1 + random_.below(SLOTS / 4), first, count)) {
        case POLL_NOTHING: return wait();
        case POLL_LAPPED: fail("%s: lapped at %llu while it holds the writer", name_, static_cast<unsigned long long>(first));
        case POLL_ROWS: break;
        }
        accept(ring_.slot(first), first, count);
        if (!ring_.intact(first)) fail("%s: lapped at %llu while it holds the writer", name_, static_cast<unsigned long long>(first));
        return true;
    }

    void run_lossy() {
        join(0);
        while (read_lossy()) {}
        if (const uint64_t end = ring_.cursor; tally_.read + tally_.lost != end)
            fail("%s: %llu rows read and %llu lost are not %llu", name_, static_cast<unsigned long long>(tally_.read),
                 static_cast<unsigned long long>(tally_.lost), static_cast<unsigned long long>(end));
        leave();
    }

    void run_reliable(int64_t until_ns) {
        join(0);
        if (!hold_writer()) fail("%s: cannot hold the writer before the first record", name_);
        while (read_held() && monotonic_ns() < until_ns)
            if (random_.below(1024) == 0) nap();
        if (tally_.read != ring_.cursor || tally_.lost != 0) fail("%s: missed a row", name_);
        leave();
    }

    void run_coming_and_going() {
        for (bool open = true; open;) {
            join(load_acquire(ring_.header->watermarks[PUBLISHED].sequence));
            last_stamp_ = 0;
            do {
                open = read_lossy();
            } while (open && !hold_writer());
            for (uint64_t left = random_.below(32); open && left != 0; --left) open = read_held();
            leave();
        }
    }

  private:
    bool wait() {
        if (load_acquire(ring_.header->status) & STATUS_CLOSED)
            return load_acquire(ring_.header->watermarks[PUBLISHED].sequence) > ring_.cursor;
        wait_for(*ring_.header, *ring_.control, PUBLISHED, ring_.cursor, 1'000'000, static_cast<WaitStrategy>(random_.below(3)));
        return true;
    }

    void accept(const char *rows, uint64_t first, uint64_t count) {
        for (uint64_t row = 0; row < count; ++row, rows += ROW_BYTES) {
            if (!row_is_whole(rows, ROW_BYTES, first + row))
                fail("%s: a torn row was accepted as %llu", name_, static_cast<unsigned long long>(first + row));
            int64_t stamp;
            std::memcpy(&stamp, rows + 8, 8);
            if (stamp < last_stamp_) fail("%s: time steps back at %llu", name_, static_cast<unsigned long long>(first + row));
            last_stamp_ = stamp;
        }
        tally_.read += count;
        ring_.cursor = first + count - 1;
    }

    void nap() const {
        const timespec moment{0, 200'000};
        nanosleep(&moment, nullptr);
    }

    const char *name_;
    Tally &tally_;
    Random random_;
    RingReader ring_;
    int slot_ = -1;
    int64_t last_stamp_ = 0;
    std::vector<char> copy_;
};

void run_reader(const Shared &shared, int number, uint64_t seed, int64_t half_ns) {
    static constexpr const char *NAMES[READERS] = {"lossy 1", "lossy 2", "reliable", "coming and going"};
    Reader reader(NAMES[number], shared, number, seed * READERS + static_cast<uint64_t>(number));
    if (number == 2)
        reader.run_reliable(half_ns);
    else if (number == 3)
        reader.run_coming_and_going();
    else
        reader.run_lossy();
}

uint64_t write_until(const Shared &shared, int64_t end_ns, uint64_t seed) {
    RingWriter ring;
    ring.open(shared.data, shared.control, false);
    Publisher publisher(ring, seed);
    while (load_acquire(shared.tallies[2].held) == 0) sched_yield();  // the reliable reader wants all from the first on
    while (monotonic_ns() < end_ns)
        if (!publisher.publish_some()) fail("writer: no room within 20 s");
    or_release(ring.header->status, uint32_t{STATUS_CLOSED});
    ring.wake_readers();
    return ring.published;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 4) fail("usage: ring_stress processes|threads SECONDS SEED");
    const bool threads = std::strcmp(argv[1], "threads") == 0;
    const double seconds = std::atof(argv[2]);
    const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
    alarm(TIMEOUT_S);  // whatever hangs dies of it
    barrier_register();

    const int fd = memfd_create("ring", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(RING_BYTES)) != 0) fail("no memory for a ring: %s", std::strerror(errno));
    Shared shared{map_shared(fd, RING_BYTES, PROT_READ | PROT_WRITE), threads ? -1 : fd,
                  reinterpret_cast<ControlHeader *>(map_shared(-1, sizeof(ControlHeader), PROT_READ | PROT_WRITE)),
                  reinterpret_cast<Tally *>(map_shared(-1, READERS * sizeof(Tally), PROT_READ | PROT_WRITE))};
    format_ring(shared.data, ROW_BYTES, SLOTS);

    const int64_t span_ns = static_cast<int64_t>(seconds * 1e9), half_ns = monotonic_ns() + span_ns / 2;
    const int64_t end_ns = half_ns + span_ns / 2;
    uint64_t published;
    bool sound = true;
    if (threads) {
        std::vector<std::thread> readers;
        for (int number = 0; number < READERS; ++number) readers.emplace_back(run_reader, shared, number, seed, half_ns);
        published = write_until(shared, end_ns, seed);
        for (std::thread &reader : readers) reader.join();
    } else {
        pid_t readers[READERS];
        for (int number = 0; number < READERS; ++number) {
            readers[number] = fork();
            if (readers[number] < 0) fail("fork: %s", std::strerror(errno));
            if (readers[number] == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                alarm(TIMEOUT_S);
                run_reader(shared, number, seed, half_ns);
                _exit(0);
            }
        }
        published = write_until(shared, end_ns, seed);
        for (pid_t reader : readers) {
            int status;
            waitpid(reader, &status, 0);
            sound = sound && WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
    }
    Tally all{};
    for (int number = 0; number < READERS; ++number) {
        const Tally &tally = shared.tallies[number];
        all.read += tally.read, all.lost += tally.lost, all.lapped += tally.lapped, all.voided += tally.voided;
        all.torn += tally.torn, all.held += tally.held;
    }
    std::printf("{\"published\": %llu, \"read\": %llu, \"lost\": %llu, \"lapped\": %llu, \"voided\": %llu, \"torn\": %llu, "
                "\"held\": %llu}\n",
                static_cast<unsigned long long>(published), static_cast<unsigned long long>(all.read),
                static_cast<unsigned long long>(all.lost), static_cast<unsigned long long>(all.lapped),
                static_cast<unsigned long long>(all.voided), static_cast<unsigned long long>(all.torn),
                static_cast<unsigned long long>(all.held));
    return sound ? 0 : 1;
}
