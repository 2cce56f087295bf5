// The journal: the first reader of every ring of a bus. It moves whole runs of slots into the log, and syncs.
//
// 1. One thread runs it, off the interpreter's lock. It alone raises `logged` and `durable`.
// 2. A pass gathers what every ring has published into one group, writes it, and then raises `logged`: the writer may reuse
//    those slots from then on. One sync serves every group written before it, and then `durable` rises.
//    What is kept by key goes into its topic's memtable in between: in the log first, and out of the ring last. Then `indexed` rises.
// 3. With nothing to do it naps, 50 µs at first; after a while it sleeps until `kick` or, through `asleep`, the next publish. To wake
//    it costs who publishes some 14 µs: 20 ms is the while, and less where that is a thread of the writer's own (`CALM`).
// 4. When the log fails it says so in every ring's status and stops for good.
// 5. When a ring is fenced by a newer writer it stops before the next write, and nothing more is acknowledged.
// 6. Who waits for `logged` or `durable` in an event loop arms `event_fd`, and looks: it is written when one of them rises then, and
//    when the journal stops.
#pragma once

#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "atomics.hpp"
#include "feed.hpp"
#include "layout.hpp"
#include "log_writer.hpp"
#include "ring.hpp"
#include "wait.hpp"

namespace ringmain {

enum SyncMode : uint32_t { SYNC_INTERVAL = 0, SYNC_ALWAYS = 1, SYNC_NEVER = 2 };

struct JournalRing {
    DataHeader *header;
    ControlHeader *control;
    const char *slots;
    uint64_t slot_count;
    uint64_t logged, durable, gathered;  // gathered: in the group being built
    uint32_t row_bytes;
    Feed *feed;  // where its rows go by key, or null
    uint64_t indexed;
};

// Makes room in the memtable of a ring, by its number; may wait. False where it cannot: the ring's rows are in the log only then.
using MakeRoom = bool (*)(void *context, uint32_t ring);

class Journal {
  public:
    static constexpr Rest QUICK{50'000, 20'000'000};

    Journal(LogWriter *log, SyncMode mode, int64_t interval_ns, const Rest &rest, MakeRoom make_room, void *context)
        : log_(log),
          mode_(mode),
          interval_ns_(interval_ns),
          rest_(rest),
          make_room_(make_room),
          context_(context) {}
    Journal(const Journal &) = delete;
    Journal &operator=(const Journal &) = delete;
    ~Journal() {
        if (event_fd_ >= 0) close(event_fd_);
    }

    // -1 where the system refuses it.
    int event_fd() const { return event_fd_; }

    // The event is written once when something rises from now on: look afterwards whether it has.
    void arm() {
        store_relaxed(armed_, 1u);
        std::atomic_thread_fence(std::memory_order_seq_cst);  // sync ARM: arm first, then look at the watermarks
    }

    // feed: where the topic is kept by key; it must outlive the journal.
    void add_ring(char *data, ControlHeader *control, Feed *feed) {
        auto *header = reinterpret_cast<DataHeader *>(data);
        const uint64_t logged = load_relaxed(header->watermarks[LOGGED].sequence);
        const uint64_t durable = load_relaxed(header->watermarks[DURABLE].sequence);
        rings_.push_back({header, control, data + header->slots_offset, header->slot_count, logged, durable, logged,
                          header->row_bytes, feed, logged});
    }

    const uint32_t *asleep() const { return &asleep_; }

    void kick() {
        add_relaxed(kicks_, 1u);
        std::atomic_thread_fence(std::memory_order_seq_cst);  // sync KICK: count first, then look whether it naps
        if (load_relaxed(napping_) != 0) futex_wake_all(kicks_);
    }

    void request_stop() {
        store_release(stop_, 1u);
        kick();
    }

    // Runs until `request_stop` and everything published is durable, or until the log fails or the bus is fenced.
    // Returns 0, the log's errno, or ESTALE when fenced.
    int run() {
        prctl(PR_SET_TIMERSLACK, 1'000);
        int64_t idle_since = 0;
        for (;;) {
            const uint32_t kicks = load_acquire(kicks_);
            const bool stopping = load_acquire(stop_) != 0;  // before gathering: what was published before it is seen
            if (fenced()) return stop_with(ESTALE);
            const bool wrote = gather();
            if (const int error = log_->write_group(); error != 0) return stop_with(error);
            if (wrote) {
                // Not fenced by now, a newer writer looks at the log only after this group is in it. Otherwise it may have looked
                // before: then these rows are its to save from the ring, and no slot of theirs may be given back.
                if (fenced()) return stop_with(ESTALE);
                index();
                raise_logged();
            }
            if (const int error = sync_if_due(stopping && !wrote); error != 0) return stop_with(error);
            if (wrote) {
                idle_since = 0;
                continue;
            }
            if (stopping) {
                const int error = log_->finish();
                if (error != 0) return stop_with(error);
                raise_durable();
                return 0;
            }
            const int64_t now = monotonic_ns();
            if (idle_since == 0) idle_since = now;
            if (!dirty_)
                if (const int error = log_->write_mark(); error != 0) return stop_with(error);
            nap(kicks, now, idle_since);
        }
    }

  private:
    bool fenced() const {
        for (const JournalRing &ring : rings_)
            if (load_acquire(ring.header->status) & STATUS_FENCED) return true;
        return false;
    }

    // Put contiguous runs of slots into the group until it is full or the rings are drained.
    bool gather() {
        bool any = false;
        for (uint32_t index = 0; index < rings_.size(); ++index) {
            JournalRing &ring = rings_[index];
            const uint64_t published = load_acquire(ring.header->watermarks[PUBLISHED].sequence);  // sync PUBLISH
            while (ring.gathered < published) {
                uint64_t count;
                const char *rows = run_behind(ring, ring.gathered, published, count);
                const uint64_t room = log_->group_room_rows(index);
                if (room == 0) return any;
                if (count > room) count = room;
                if (log_->add_rows(index, rows, count) != 0) return any;
                ring.gathered += count;
                any = true;
            }
        }
        return any;
    }

    // The slots behind `sequence` that lie next to each other in memory, up to `last`.
    static const char *run_behind(const JournalRing &ring, uint64_t sequence, uint64_t last, uint64_t &count) {
        const uint64_t slot = (sequence + 1) & (ring.slot_count - 1);
        count = std::min(last - sequence, ring.slot_count - slot);
        return ring.slots + slot * ring.row_bytes;
    }

    // Put what has been written to the log into the memtables of the topics that are kept by key.
    void index() {
        for (uint32_t number = 0; number < rings_.size(); ++number) {
            JournalRing &ring = rings_[number];
            while (ring.feed != nullptr && ring.indexed < ring.gathered) {
                uint64_t count;
                const char *rows = run_behind(ring, ring.indexed, ring.gathered, count);
                const uint64_t added = ring.feed->add(rows, count);
                ring.indexed += added;
                if (added != 0) continue;
                let_go(ring);
                if (!make_room_(context_, number)) ring.feed = nullptr;
            }
        }
    }

    // Before waiting for room in a memtable: it may come only once earlier rows are in tables, and these may go there only once they are
    // durable, here and on other hosts. So nothing that is in the log and in a memtable may wait for this thread.
    void let_go(JournalRing &ring) {
        if (ring.logged != ring.indexed) {
            ring.logged = ring.indexed;
            raise_watermark(*ring.header, *ring.control, LOGGED, ring.logged);
        }
        if (mode_ != SYNC_NEVER && log_->sync() == 0 && !fenced()) raise_durable();  // a sync that fails is told by the next
    }

    void raise_logged() {
        dirty_ = true;
        for (JournalRing &ring : rings_) {
            if (ring.logged == ring.gathered) continue;
            ring.logged = ring.gathered;
            raise_watermark(*ring.header, *ring.control, LOGGED, ring.logged);
            if (ring.feed != nullptr) raise_watermark(*ring.header, *ring.control, INDEXED, ring.indexed);
            wake_drain(*ring.control);
        }
        tell();
    }

    void raise_durable() {
        for (JournalRing &ring : rings_) {
            if (ring.durable == ring.logged) continue;
            ring.durable = ring.logged;
            raise_watermark(*ring.header, *ring.control, DURABLE, ring.durable);
            wake_drain(*ring.control);
        }
        tell();
    }

    void tell() {
        std::atomic_thread_fence(std::memory_order_seq_cst);  // sync ARM: raise first, then look whether somebody waits
        if (load_relaxed(armed_) == 0) return;
        store_relaxed(armed_, 0u);
        eventfd_write(event_fd_, 1);
    }

    int sync_if_due(bool now) {
        if (!dirty_ || mode_ == SYNC_NEVER) {
            dirty_ = false;
            return 0;
        }
        if (!now && mode_ == SYNC_INTERVAL && monotonic_ns() - last_sync_ns_ < interval_ns_) return 0;
        if (const int error = log_->sync(); error != 0) return error;
        last_sync_ns_ = monotonic_ns();
        dirty_ = false;
        if (!fenced()) raise_durable();
        return 0;
    }

    void nap(uint32_t kicks, int64_t now, int64_t idle_since) {
        const int64_t idle_ns = now - idle_since;  // the longer it was idle, the longer it naps, and wakes less often for nothing
        const int64_t nap_ns = std::clamp<int64_t>(idle_ns / 4, rest_.nap_ns, 1'000'000);
        int64_t sleep_ns = idle_ns > rest_.sleep_after_ns ? SLICE_NS : nap_ns;
        if (dirty_ && mode_ == SYNC_INTERVAL) {
            const int64_t due_ns = last_sync_ns_ + interval_ns_ - now;
            if (due_ns < sleep_ns) sleep_ns = due_ns > 1'000 ? due_ns : 1'000;
        }
        if (sleep_ns > nap_ns) {
            store_relaxed(asleep_, 1u);
            if (!barrier_heavy()) sleep_ns = nap_ns;  // sync WAKE; without it a publish may go unseen: look again soon
        }
        store_relaxed(napping_, 1u);
        std::atomic_thread_fence(std::memory_order_seq_cst);  // sync KICK
        if (nothing_new()) futex_wait(kicks_, kicks, sleep_ns);
        store_relaxed(napping_, 0u);
        store_relaxed(asleep_, 0u);
    }

    bool nothing_new() const {
        for (const JournalRing &ring : rings_)
            if (load_acquire(ring.header->watermarks[PUBLISHED].sequence) != ring.gathered) return false;
        return true;
    }

    int stop_with(int error) {
        if (fenced()) error = ESTALE;  // then the log's files are another's, and what it says of them is no failure
        for (JournalRing &ring : rings_) {
            store_relaxed(ring.header->log_errno, static_cast<uint32_t>(error));
            if (error != ESTALE) or_release(ring.header->status, uint32_t{STATUS_LOG_FAILED});
            ring_doorbell(ring.control->doorbells[LOGGED].want, ring.control->doorbells[LOGGED].bell);
            ring_doorbell(ring.control->doorbells[DURABLE].want, ring.control->doorbells[DURABLE].bell);
            ring_doorbell(ring.control->doorbells[INDEXED].want, ring.control->doorbells[INDEXED].bell);
            ring_doorbell(ring.control->doorbells[REPLICATED].want, ring.control->doorbells[REPLICATED].bell);
        }
        tell();
        return error;
    }

    LogWriter *log_;
    std::vector<JournalRing> rings_;
    const SyncMode mode_;
    const int64_t interval_ns_;
    const Rest rest_;
    const MakeRoom make_room_;
    void *const context_;
    int64_t last_sync_ns_ = monotonic_ns();
    bool dirty_ = false;  // written since the last sync
    uint32_t stop_ = 0;
    alignas(LINE) uint32_t kicks_ = 0;
    uint32_t napping_ = 0;
    const int event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    alignas(LINE) uint32_t armed_ = 0;
    alignas(LINE) uint32_t asleep_ = 0;  // publishing looks at this word: set only before a long sleep
};

}  // namespace ringmain
