// Lanes under writers that come and go as fast as they can: every row is in the topic exactly once, and in its publisher's order.
//
//   lane_stress processes|threads SECONDS SEED
//
// Three publishers, each with a lane, and one writer after the other that drains them into a ring of its own. Processes: the writer is
// killed at any instant. Threads: it is taken over while it works, and goes on until it sees that (for ThreadSanitizer, too). The
// next one is told what its predecessor's ring says of each lane, as lanes.py does. Publishers move to the new lanes by
// themselves, as lane_publisher.py does. Whoever leads (main) reads every ring up to its end.
// Exit code 1 with a line beginning with FAILED when a row is torn, missing, there twice, or out of order.
#include <sys/prctl.h>
#include <sys/wait.h>

#include <thread>

#include "lanes.hpp"
#include "stress.hpp"

using namespace stress;

namespace {

constexpr int PUBLISHERS = 3;
constexpr uint32_t ROW_BYTES = 64;  // stamp, publisher, number, four words of check
constexpr uint64_t RING_SLOTS = 256, LANE_SLOTS = 64;
constexpr int GENERATIONS_MAX = 1500;
constexpr unsigned TIMEOUT_S = 120;
constexpr int64_t PATIENCE_NS = 20'000'000'000;
const size_t RING_BYTES = ring_bytes(ROW_BYTES, RING_SLOTS), LANE_BYTES = ring_bytes(ROW_BYTES, LANE_SLOTS);

struct Shared {
    ControlHeader *control;
    char *generations;    // each a ring and the lanes that its writer opens
    uint32_t *accepted;   // by generation: its lanes are open
    uint32_t *removed;    // by a lane's number: it has been drained, and taken away
    uint32_t *stop;
    uint64_t *published;  // by publisher: rows in lanes that are settled, when it ends
    uint32_t leader;      // main's pid

    char *ring(int generation) const {
        return generations + static_cast<size_t>(generation) * (RING_BYTES + PUBLISHERS * LANE_BYTES);
    }
    char *lane(int generation, int publisher) const { return ring(generation) + RING_BYTES + static_cast<size_t>(publisher) * LANE_BYTES; }
};

DataHeader &header_of(char *data) { return *reinterpret_cast<DataHeader *>(data); }

uint64_t check_word(uint64_t publisher, uint64_t number, size_t index) { return word_of(number * PUBLISHERS + publisher, index); }

void begin_at(DataHeader &header, uint64_t last) {
    for (Watermark which : {CLAIMED, PUBLISHED, DRAINED}) store_relaxed(header.watermarks[which].sequence, last);
}

// --- a publisher ----------------------------------------------------------------------------------------------------------

class LanePublisher {
  public:
    LanePublisher(const Shared &shared, int number, uint64_t seed) : shared_(shared), number_(number), random_(seed) {}

    void run() {
        while (move()) {
            while (publish_some()) {}
            last_ = settled();
        }
        store_release(shared_.published[number_], last_);
    }

  private:
    // Go to the newest lanes that are open. False when all is over.
    bool move() {
        for (const int64_t deadline = monotonic_ns() + PATIENCE_NS;; sched_yield()) {
            for (int next = GENERATIONS_MAX - 1; next > generation_; --next) {
                if (load_acquire(shared_.accepted[next]) == 0) continue;
                generation_ = next;
                lane_ = shared_.lane(next, number_);
                ring_ = RingWriter();
                ring_.open_lane(lane_);
                if (ring_.published != last_)
                    fail("publisher %d: the next lane begins behind %llu, not %llu", number_,
                         static_cast<unsigned long long>(ring_.published), static_cast<unsigned long long>(last_));
                return true;
            }
            if (load_acquire(*shared_.stop) != 0) return false;
            if (monotonic_ns() > deadline) fail("publisher %d: no next writer", number_);
        }
    }

    // False where the lane was fenced.
    bool publish_some() {
        const uint64_t count = 1 + random_.below(LANE_SLOTS / 4);
        for (const int64_t deadline = monotonic_ns() + PATIENCE_NS; !ring_.may_publish(count);) {
            if (load_acquire(ring_.header->status) != 0) return false;
            if (!ring_.wait_for_room(count, 10'000'000) && monotonic_ns() > deadline) fail("publisher %d: no room", number_);
        }
        ring_.claim(ring_.published + count);
        for (uint64_t number = ring_.published + 1; number <= ring_.published + count; ++number) {
            char *slot = ring_.slot(number);
            put<uint64_t>(slot, number);
            put<int64_t>(slot + 8, ring_.stamp_ns());
            put<uint64_t>(slot + 16, static_cast<uint64_t>(number_));
            put<uint64_t>(slot + 24, number);
            for (size_t index = 0; index < 4; ++index)
                put<uint64_t>(slot + 32 + 8 * index, check_word(static_cast<uint64_t>(number_), number, index));
        }
        ring_.publish(ring_.published + count);
        if (ring_.fenced()) return false;
        wake_drain(*shared_.control);
        if (random_.below(4096) == 0) usleep(100);
        return true;
    }

    // Up to where the lane's rows come into the topic. Those behind are published again, in the next lane.
    uint64_t settled() {
        for (const int64_t deadline = monotonic_ns() + PATIENCE_NS; (load_acquire(ring_.header->status) & STATUS_SETTLED) == 0; sched_yield())
            if (monotonic_ns() > deadline) fail("publisher %d: its lane is not settled", number_);
        const uint64_t ended = load_acquire(ring_.header->watermarks[ENDED].sequence);
        return ended < ring_.published ? ended : ring_.published;
    }

    const Shared &shared_;
    const int number_;
    Random random_;
    RingWriter ring_;
    char *lane_ = nullptr;
    int generation_ = -1;
    uint64_t last_ = 0;
};

// --- a writer -------------------------------------------------------------------------------------------------------------

uint64_t number_of(int generation, int publisher) { return static_cast<uint64_t>(generation * PUBLISHERS + publisher + 1); }

struct Left {
    int generation, publisher;
    uint64_t drained, end;

    uint64_t number() const { return number_of(generation, publisher); }
};

// Drain what is left, then open this generation's lanes, and drain them until fenced or killed.
void write(const Shared &shared, int generation, const std::vector<Left> &left) {
    char *ring = shared.ring(generation);
    Drain drain(ring, shared.control, 0, false, nullptr, 0);
    for (uint32_t index = 0; index < left.size(); ++index)
        drain.add(index, shared.lane(left[index].generation, left[index].publisher), LANE_BYTES, LANE_SLOTS, DATA_HEADER_BYTES,
                  left[index].drained, left[index].end, 0, 0);
    size_t waiting = left.size();
    bool open = false;
    for (;;) {
        if (waiting == 0 && !open) {
            open = true;
            for (int publisher = 0; publisher < PUBLISHERS; ++publisher) {
                char *lane = shared.lane(generation, publisher);
                const uint64_t begin = load_acquire(header_of(lane).watermarks[DRAINED].sequence);
                begin_position(header_of(ring).positions[publisher], number_of(generation, publisher), begin);
                drain.add(static_cast<uint32_t>(publisher), lane, LANE_BYTES, LANE_SLOTS, DATA_HEADER_BYTES, begin, Lane::ENDLESS,
                          shared.leader, 0);
            }
            store_release(shared.accepted[generation], 1u);
        }
        const DrainEvent event = drain.run();
        if (event == DRAIN_FENCED) return;
        if (event != DRAIN_LOOK) fail("writer %d: event %d", generation, static_cast<int>(event));
        for (size_t at = drain.lanes().size(); at-- > 0;)
            if (drain.lanes()[at].finished() && !open) {
                const uint32_t index = drain.lanes()[at].index;
                drain.remove(index);
                store_release(shared.removed[left[index].number()], 1u);  // before its position is another's
                --waiting;
            }
    }
}

// --- who leads ------------------------------------------------------------------------------------------------------------

class Leader {
  public:
    explicit Leader(const Shared &shared) : shared_(shared) {
        entry_ = &shared.control->readers[take_reader(*shared.control, shared.leader)];
        entry_->process_start = process_start(shared.leader);
        store_relaxed(entry_->policy, uint32_t{RELIABLE});
        store_release(entry_->owner, owner_word(shared.leader, READER_ACTIVE));
    }

    // Before the writer of this generation begins: its ring, with what is known of the lanes that are left, and its lanes.
    std::vector<Left> prepare(int generation) {
        char *ring = shared_.ring(generation);
        format_ring(ring, ROW_BYTES, RING_SLOTS);
        begin_at(header_of(ring), cursor_);
        for (uint32_t index = 0; index < left_.size(); ++index)
            begin_position(header_of(ring).positions[index], left_[index].number(), left_[index].drained);
        for (int publisher = 0; publisher < PUBLISHERS; ++publisher) {
            char *lane = shared_.lane(generation, publisher);
            format_ring(lane, ROW_BYTES, LANE_SLOTS);
            begin_at(header_of(lane), ends_[publisher]);
        }
        ring_.open(ring, shared_.control, PUBLISHED);
        ring_.cursor = cursor_;
        ring_.entry = entry_;
        return left_;
    }

    void read_until(int64_t until_ns) {
        do {
            if (!read_some()) sched_yield();
        } while (monotonic_ns() < until_ns);
    }

    // The writer was killed, or is being taken over: end its ring and its lanes, and read the rest.
    void take_over(int generation) {
        char *ring = shared_.ring(generation);
        const uint64_t ended = fence_ring(header_of(ring), STATUS_FENCED);
        ring_doorbell(shared_.control->drain.want, shared_.control->drain.bell);
        std::vector<Left> left;
        for (Left lane : left_) {
            if (load_acquire(shared_.removed[lane.number()]) != 0) continue;
            lane.drained = find(ring, lane, lane.drained);
            if (lane.drained < lane.end) left.push_back(lane);
        }
        for (int publisher = 0; publisher < PUBLISHERS; ++publisher) {
            DataHeader &lane = header_of(shared_.lane(generation, publisher));
            ends_[publisher] = fence_ring(lane, STATUS_FENCED);
            Left now{generation, publisher, 0, ends_[publisher]};
            now.drained = find(ring, now, load_acquire(lane.watermarks[DRAINED].sequence));
            if (now.drained > now.end) fail("lane %d of writer %d is drained beyond its end", publisher, generation);
            if (now.drained < now.end) left.push_back(now);
        }
        left_ = left;
        carried += left_.size();
        while (cursor_ < ended)
            if (!read_some()) fail("writer %d: its ring ends at %llu, and is read up to %llu", generation,
                                   static_cast<unsigned long long>(ended), static_cast<unsigned long long>(cursor_));
    }

    uint64_t seen(int publisher) const { return seen_[publisher]; }
    uint64_t cursor() const { return cursor_; }
    uint64_t carried = 0, turns_counted = 0;

  private:
    // What lanes.py's find_left makes of a ring.
    uint64_t find(char *ring, const Left &lane, uint64_t otherwise) {
        for (const LanePosition &position : header_of(ring).positions) {
            if (load_acquire(position.lane) != lane.number()) continue;
            const uint64_t drained = drained_position(header_of(ring), position);
            turns_counted += drained > load_acquire(position.drained);
            return drained;
        }
        return otherwise;
    }

    bool read_some() {
        uint64_t first, count;
        const PollResult result = ring_.poll(RING_SLOTS / 4, first, count);
        if (result == POLL_NOTHING) return false;
        if (result == POLL_LAPPED) fail("lapped at %llu", static_cast<unsigned long long>(first));
        for (uint64_t sequence = first; sequence < first + count; ++sequence) {
            uint64_t words[ROW_BYTES / 8];
            std::memcpy(words, ring_.slot(sequence), ROW_BYTES);
            const uint64_t publisher = words[2], number = words[3];
            bool whole = words[0] == sequence && publisher < PUBLISHERS;
            for (size_t index = 0; index < 4; ++index) whole = whole && words[4 + index] == check_word(publisher, number, index);
            if (!whole) fail("row %llu is torn", static_cast<unsigned long long>(sequence));
            if (number != seen_[publisher] + 1)
                fail("row %llu: number %llu of publisher %llu behind %llu", static_cast<unsigned long long>(sequence),
                     static_cast<unsigned long long>(number), static_cast<unsigned long long>(publisher),
                     static_cast<unsigned long long>(seen_[publisher]));
            seen_[publisher] = number;
            const auto stamp = static_cast<int64_t>(words[1]);
            if (stamp < last_stamp_ && ring_.header == stamped_) fail("time steps back at %llu", static_cast<unsigned long long>(sequence));
            last_stamp_ = stamp, stamped_ = ring_.header;
        }
        cursor_ = ring_.cursor = first + count - 1;
        return true;
    }

    const Shared &shared_;
    ReaderEntry *entry_;
    RingReader ring_;
    uint64_t cursor_ = 0, seen_[PUBLISHERS] = {}, ends_[PUBLISHERS] = {};
    int64_t last_stamp_ = 0;
    const DataHeader *stamped_ = nullptr;
    std::vector<Left> left_;
};

template <typename Work>
pid_t in_process(Work work) {
    const pid_t child = fork();
    if (child < 0) fail("fork: %s", std::strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(TIMEOUT_S);
        work();
        _exit(0);
    }
    return child;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 4) fail("usage: lane_stress processes|threads SECONDS SEED");
    const bool threads = std::strcmp(argv[1], "threads") == 0;
    const int64_t end_ns = monotonic_ns() + static_cast<int64_t>(std::atof(argv[2]) * 1e9);
    const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
    alarm(TIMEOUT_S);  // whatever hangs dies of it
    barrier_register();

    const size_t generation_bytes = RING_BYTES + PUBLISHERS * LANE_BYTES;
    auto map = [](size_t bytes) { return map_shared(-1, bytes, PROT_READ | PROT_WRITE); };
    Shared shared{reinterpret_cast<ControlHeader *>(map(sizeof(ControlHeader))), map(GENERATIONS_MAX * generation_bytes),
                  reinterpret_cast<uint32_t *>(map(GENERATIONS_MAX * 4)),
                  reinterpret_cast<uint32_t *>(map((GENERATIONS_MAX * PUBLISHERS + 1) * 4)), reinterpret_cast<uint32_t *>(map(4)),
                  reinterpret_cast<uint64_t *>(map(PUBLISHERS * 8)), static_cast<uint32_t>(getpid())};
    Random random(seed);
    Leader leader(shared);
    std::vector<std::thread> running, writers;
    std::vector<pid_t> publishers;
    for (int number = 0; number < PUBLISHERS; ++number) {
        auto work = [&shared, number, seed] { LanePublisher(shared, number, seed * PUBLISHERS + static_cast<uint64_t>(number)).run(); };
        if (threads)
            running.emplace_back(work);
        else
            publishers.push_back(in_process(work));
    }
    auto start_writer = [&](int generation) {
        const std::vector<Left> left = leader.prepare(generation);
        auto work = [&shared, generation, left] { write(shared, generation, left); };
        if (!threads) return in_process(work);
        writers.emplace_back(work);
        return pid_t{0};
    };
    auto end_writer = [&](int generation, pid_t writer) {
        if (!threads) {
            kill(writer, SIGKILL);
            waitpid(writer, nullptr, 0);
        }
        leader.take_over(generation);
    };
    int generation = 0;
    for (; monotonic_ns() < end_ns && generation + 1 < GENERATIONS_MAX; ++generation) {
        const pid_t writer = start_writer(generation);
        leader.read_until(monotonic_ns() + static_cast<int64_t>(random.below(threads ? 3'000'000 : 1'500'000)));
        end_writer(generation, writer);
    }
    store_release(*shared.stop, 1u);  // all lanes are fenced: the publishers find no other ones
    bool sound = true;
    for (pid_t publisher : publishers) {
        int status;
        waitpid(publisher, &status, 0);
        sound = sound && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    for (std::thread &publisher : running) publisher.join();
    const pid_t writer = start_writer(generation);  // has only what is left to drain
    for (int publisher = 0; sound && publisher < PUBLISHERS; ++publisher)
        for (const int64_t deadline = monotonic_ns() + PATIENCE_NS; leader.seen(publisher) != load_acquire(shared.published[publisher]);) {
            leader.read_until(0);
            if (monotonic_ns() > deadline)
                fail("publisher %d published %llu, and %llu came", publisher,
                     static_cast<unsigned long long>(shared.published[publisher]), static_cast<unsigned long long>(leader.seen(publisher)));
        }
    end_writer(generation, writer);
    for (std::thread &thread : writers) thread.join();
    for (int publisher = 0; sound && publisher < PUBLISHERS; ++publisher)
        if (leader.seen(publisher) != shared.published[publisher]) fail("publisher %d: more came than was published", publisher);
    std::printf("{\"writers\": %d, \"rows\": %llu, \"carried\": %llu, \"turns\": %llu}\n", generation,
                static_cast<unsigned long long>(leader.cursor()), static_cast<unsigned long long>(leader.carried),
                static_cast<unsigned long long>(leader.turns_counted));
    return sound ? 0 : 1;
}
