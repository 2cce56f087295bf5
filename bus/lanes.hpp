// The drain: the reader of a topic's lanes, and the only one who publishes in the ring of a topic that has them.
//
// 1. One thread runs it, off the interpreter's lock. Lanes are added and removed by that thread, between two calls of `run`.
// 2. Lanes take turns, of at most `turn_rows_` rows. A turn that the ring has no room for is finished before the next one's begins:
//    so lanes that always have something are served alike.
// 3. A turn: copy the rows into the ring; store in the ring where topic and lane will then be (LanePosition); publish; if the ring
//    was fenced, stop; raise the lane's `drained`. So the next writer knows of every row whether it is in the topic: below.
// 4. Nothing in a lane is believed. How large it is was checked once, by whoever added it; its slots are found by our own count.
// 5. A lane ends when its publisher has left or died, or when the writer closes: it is fenced then, and drained up to its end.
// 6. Behind the last row the drain spins, then naps, then sleeps until it is rung for. In a replicated bus it does not spin (`CALM`).
//
// The next writer fences the ring, which settles where it ends, and then reads the position of a lane that was left behind,
// `lane_last` first (sync TURN). Is `topic_last` within the end, the turn counts: the lane is drained up to `lane_last`. Else the
// turn was never published, and the lane is drained up to `drained`. It keeps the answer in a ring of its own.
//   Turn n + 1 stores topic_last, then lane_last, each with release, after `drained` was raised for turn n:
//   - lane_last of n + 1 is read: then its topic_last is read as well.
//   - topic_last of n + 1 is read, and was not published: `drained` is that of n. It is not below, by the release.
//   - topic_last of n + 1 is read, and was published before the end was settled: lane_last of n + 1 was stored before that,
//     and is read, since the reader saw the publishing (sync PUBLISH) when it settled the end.
//   What a fenced writer that wakes still stores is a turn behind the end: its topic_last is above it, and does not count.
// tests/model/lane.pml is the model.
#pragma once

#include <sys/prctl.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "atomics.hpp"
#include "journal.hpp"
#include "lane_runs.hpp"
#include "layout.hpp"
#include "ring.hpp"
#include "wait.hpp"

namespace ringmain {

// Up to where a lane has been drained, from the position of it in a ring that is fenced and settled.
inline uint64_t drained_position(const DataHeader &ring, const LanePosition &position) {
    const uint64_t lane_last = load_acquire(position.lane_last);  // sync TURN: in this order
    const uint64_t topic_last = load_acquire(position.topic_last);
    const uint64_t drained = load_acquire(position.drained);
    return topic_last <= load_acquire(ring.watermarks[ENDED].sequence) && lane_last > drained ? lane_last : drained;
}

// Before any row of the lane is drained. The number comes last: an entry with it is whole.
inline void begin_position(LanePosition &position, uint64_t lane, uint64_t drained) {
    store_release(position.lane, uint64_t{0});
    store_release(position.drained, drained);
    store_release(position.topic_last, uint64_t{0});
    store_release(position.lane_last, drained);
    store_release(position.lane, lane);
}

struct Lane {
    uint32_t index;       // in the topic's lane table and positions; of one that an earlier writer left: in the positions only
    DataHeader *header;
    ControlHeader *control;
    const char *slots;
    uint64_t slot_count, drained;
    uint64_t end;         // where it ends; ENDLESS while it goes on
    uint32_t pid;         // its publisher; 0: nobody's any more
    uint64_t process_start;
    LaneRuns runs;
    uint64_t turn_left = 0;  // rows, of a turn that the ring had no room for

    static constexpr uint64_t ENDLESS = UINT64_MAX;

    bool finished() const { return drained >= end; }
};

enum DrainEvent : int {
    DRAIN_LOOK = 0,     // the lane table has changed, a lane has ended, or the drain is to stop: the caller sees to it, and runs on
    DRAIN_STOPPED = 1,  // all lanes are drained to their ends
    DRAIN_STUCK = 2,    // the time to stop is over, and the ring has no room for what is in the lanes: see `stuck`
    DRAIN_FENCED = 3,
    DRAIN_FAILED = 4,   // the log has stopped
};

class Drain {
  public:
    // known: a bit for each of LOGGED, DURABLE, INDEXED, REPLICATED that the topic has. drop: drop slow readers when the ring is full.
    // journal: the writer's, or null; it must outlive this.
    Drain(char *data, ControlHeader *control, uint32_t known, bool drop, Journal *journal, int64_t last_timestamp_ns)
        : known_(known), drop_(drop), calm_((known >> (REPLICATED - LOGGED) & 1) != 0), journal_(journal) {
        barrier_register();
        ring_.open(data, control, journal != nullptr);
        ring_.last_timestamp_ns = std::max(ring_.last_timestamp_ns, last_timestamp_ns);
        if (journal != nullptr) ring_.journal_asleep = journal->asleep();
        turn_rows_ = std::clamp<uint64_t>(ring_.slot_count / 8, 1, 1024);
    }

    // The lane's memory must outlive its place here. end: of one that is fenced already, else Lane::ENDLESS. False where the slots
    // are not all inside of `bytes`.
    bool add(uint32_t index, char *data, size_t bytes, uint64_t slot_count, uint64_t slots_offset, uint64_t drained, uint64_t end,
             uint32_t pid, uint64_t process_start) {
        if (slot_count == 0 || (slot_count & (slot_count - 1)) != 0 || slots_offset < DATA_HEADER_BYTES || slots_offset > bytes ||
            (bytes - slots_offset) / ring_.row_bytes < slot_count)
            return false;
        auto *header = reinterpret_cast<DataHeader *>(data);
        // One that an earlier writer left is told nothing of what is replicated: what it brought before may have been cut since.
        const uint32_t kinds = end == Lane::ENDLESS ? known_ : known_ & ~(1u << (REPLICATED - LOGGED));
        lanes_.push_back({index, header, lane_control(data), data + slots_offset, slot_count, drained, end, pid,
                          process_start, LaneRuns(kinds)});
        if (drained != 0) lanes_.back().runs.add(drained, ring_.published);  // what an earlier lane of this publisher has brought
        return true;
    }

    // Fence a lane: it is drained up to where it ends then. bits: more for its status.
    void end(uint32_t index, uint32_t bits) {
        for (Lane &lane : lanes_)
            if (lane.index == index && lane.end == Lane::ENDLESS) end(lane, bits);
    }

    void end_all(uint32_t bits) {
        raise_known();  // before the fence: who waits looks there no more behind it
        for (Lane &lane : lanes_)
            if (lane.end == Lane::ENDLESS) end(lane, bits);
    }

    void remove(uint32_t index) {
        std::erase_if(lanes_, [index](const Lane &lane) { return lane.index == index; });
    }

    const std::vector<Lane> &lanes() const { return lanes_; }

    // Tell the lanes what is known of their rows.
    void raise_known() {
        for (uint32_t kind = 0; kind < LaneRuns::KINDS; ++kind) {
            if ((known_ >> kind & 1) == 0) continue;
            const auto which = static_cast<Watermark>(LOGGED + kind);
            seen_[kind] = load_acquire(ring_.header->watermarks[which].sequence);
            for (Lane &lane : lanes_)
                if (const uint64_t last = lane.runs.reached(kind, seen_[kind]); last != 0)
                    raise_watermark(*lane.header, *lane.control, which, last);
        }
    }

    // From any thread. patience_ns: how long readers may leave no room for what is in the lanes.
    void request_stop(int64_t patience_ns) {
        stop_at_ns_ = monotonic_ns() + patience_ns;
        store_release(stop_, 1u);
        ring_doorbell(ring_.control->drain.want, ring_.control->drain.bell);
    }

    // From any thread: take nothing for now; lanes that end meanwhile end where they are drained.
    void hold(bool held) {
        store_release(held_, held ? 1u : 0u);
        ring_doorbell(ring_.control->drain.want, ring_.control->drain.bell);
    }

    // From any thread: whether nothing is taken any more, since `hold`.
    bool holds() const { return load_acquire(holds_) != 0; }

    DrainEvent run() {
        prctl(PR_SET_TIMERSLACK, 1'000);
        for (;;) {
            const uint32_t status = load_acquire(ring_.header->status);
            if (status & STATUS_FENCED) return DRAIN_FENCED;
            if (status & STATUS_LOG_FAILED) return fail();
            const bool stopping = load_acquire(stop_) != 0;
            if (stopping && !stop_told_) {
                stop_told_ = true;
                return DRAIN_LOOK;
            }
            if (load_relaxed(ring_.control->lanes_changed) != 0) {
                exchange(ring_.control->lanes_changed, 0u);  // clear first, then look
                return DRAIN_LOOK;
            }
            blocked_ = false;
            const bool held = load_acquire(held_) != 0;
            store_release(holds_, held ? 1u : 0u);  // behind all that was published before
            const bool moved = !held && pass();
            if (fenced_) return DRAIN_FENCED;
            raise_known();
            if (std::any_of(lanes_.begin(), lanes_.end(), [](const Lane &lane) { return lane.finished(); })) {
                if (!stopping) return DRAIN_LOOK;
                if (std::all_of(lanes_.begin(), lanes_.end(), [](const Lane &lane) { return lane.finished(); })) return DRAIN_STOPPED;
            } else if (stopping && lanes_.empty()) {
                return DRAIN_STOPPED;
            }
            const int64_t now = monotonic_ns();
            if (stopping && !moved && now >= stop_at_ns_ && stuck(held, now)) return DRAIN_STUCK;
            look_for_dead(now);
            if (moved)
                active_ns_ = now;
            else
                rest(now);
        }
    }

  private:
    static constexpr int64_t SPIN_NS = 200'000;  // after the last row; not in a replicated bus
    static constexpr Rest QUICK{50'000, 500'000};
    static constexpr int64_t DEAD_CHECK_NS = 250'000'000;  // every lane's publisher is looked at this often
    static constexpr int64_t LOG_STOP_NS = 10'000'000'000;  // behind the time to stop, the log may make no room for so long

    void end(Lane &lane, uint32_t bits) {
        lane.end = fence_ring(*lane.header, STATUS_FENCED | bits, load_acquire(held_) != 0 ? lane.drained : Lane::ENDLESS);
        if (lane.end - lane.drained > lane.slot_count) lane.end = lane.drained;  // it contradicts itself: what is it worth
        for (uint32_t which = LOGGED; which < WATERMARK_COUNT; ++which)
            ring_doorbell(lane.control->doorbells[which].want, lane.control->doorbells[which].bell);
    }

    // A turn for every lane, as far as there is room. True where a row was moved.
    bool pass() {
        bool moved = false;
        for (size_t count = lanes_.size(), at = 0; at < count && !fenced_; ++at) {
            if (turn(lanes_[(first_ + at) % count])) moved = true;
            if (blocked_) {
                first_ = (first_ + at) % count;
                break;
            }
        }
        return moved;
    }

    bool turn(Lane &lane) {
        const uint64_t published =
            lane.end != Lane::ENDLESS ? lane.end : load_acquire(lane.header->watermarks[PUBLISHED].sequence);  // sync PUBLISH
        if (published <= lane.drained) return false;
        if (published - lane.drained > lane.slot_count) {  // no publisher of ours does that
            end(lane, 0);
            return false;
        }
        const uint64_t turn_rows = lane.turn_left != 0 ? lane.turn_left : turn_rows_;
        const uint64_t wanted = std::min(published - lane.drained, turn_rows), count = room(wanted);
        blocked_ = count < wanted;
        lane.turn_left = blocked_ ? turn_rows - count : 0;
        if (count == 0) return false;
        const uint64_t topic_last = ring_.published + count, lane_last = lane.drained + count;
        ring_.claim(topic_last);
        copy(lane, count);
        LanePosition &position = ring_.header->positions[lane.index];
        store_release(position.topic_last, topic_last);  // sync TURN: in this order, and both before the rows are published
        store_release(position.lane_last, lane_last);
        ring_.publish(topic_last);
        if (ring_.fenced()) {
            fenced_ = true;
            return false;
        }
        lane.drained = lane_last;
        lane.runs.add(lane_last, topic_last);
        store_release(position.drained, lane_last);
        raise_watermark(*lane.header, *lane.control, DRAINED, lane_last);  // sync DRAIN: the copy first, then the slots are free
        if (ring_.someone_sleeps()) ring_.wake_readers();
        if (journal_ != nullptr && load_relaxed(*journal_->asleep()) != 0) journal_->kick();
        return true;
    }

    // How many of `count` rows the ring has room for, now.
    uint64_t room(uint64_t count) {
        if (ring_.may_publish(count)) return count;
        if (load_relaxed(ring_.control->attention.wake[1]) != 0) ring_.rescan(); else ring_.update_limit();
        if (load_acquire(ring_.header->status) != 0) return 0;
        if (ring_.limit > ring_.published) return std::min(count, ring_.limit - ring_.published);
        if (drop_ && ring_.freed_allows() > ring_.published) {
            ring_.drop_slow_readers(ring_.published + 1);
        } else if (const int64_t now = monotonic_ns(); now - readers_looked_ns_ > 100'000'000) {
            readers_looked_ns_ = now;
            if (free_dead_readers(*ring_.control) != 0) ring_.rescan();
        }
        return ring_.limit > ring_.published ? std::min(count, ring_.limit - ring_.published) : 0;
    }

    // Copy the lane's next rows behind the topic's last, and stamp them. A row keeps the time at which it was published in its
    // lane, unless that lies before the topic's last one, or in the future.
    void copy(const Lane &lane, uint64_t count) {
        const int64_t now = wall_ns();
        int64_t last = ring_.last_timestamp_ns;
        const uint64_t row_bytes = ring_.row_bytes;
        uint64_t from = lane.drained + 1, to = ring_.published + 1;
        while (count != 0) {
            const uint64_t lane_slot = from & (lane.slot_count - 1), slot = to & ring_.mask;
            const uint64_t rows = std::min({count, lane.slot_count - lane_slot, ring_.slot_count - slot});
            char *row = ring_.slots + slot * row_bytes;
            std::memcpy(row, lane.slots + lane_slot * row_bytes, rows * row_bytes);
            for (uint64_t sequence = to; sequence < to + rows; ++sequence, row += row_bytes) {
                int64_t stamp;
                std::memcpy(&stamp, row + 8, 8);
                last = std::max(last, std::min(stamp, now));
                std::memcpy(row, &sequence, 8);
                std::memcpy(row + 8, &last, 8);
            }
            from += rows, to += rows, count -= rows;
        }
        ring_.last_timestamp_ns = last;
    }

    // Whether to give up, behind the time to stop, since a pass has moved nothing. The log is behind now and then, however fast it
    // is: it is waited for. Not in a replicated bus, where it may wait itself, for what other hosts never get.
    bool stuck(bool held, int64_t now) {
        if (held) return true;
        const bool readers_hold = std::any_of(ring_.reliable.begin(), ring_.reliable.end(), [this](uint32_t index) {
            return ring_.consumed(index) + ring_.slot_count <= ring_.published;
        });
        if (!readers_hold) return calm_ || now - std::max(active_ns_, stop_at_ns_) >= LOG_STOP_NS;
        if (free_dead_readers(*ring_.control) == 0) return true;
        ring_.rescan();
        return false;
    }

    // One lane after the other, spread over time: a look at a process costs some 20 µs.
    void look_for_dead(int64_t now) {
        const int64_t count = static_cast<int64_t>(lanes_.size());
        if (count == 0 || now - dead_looked_ns_ < DEAD_CHECK_NS / count) return;
        for (int64_t due = std::min(count, (now - dead_looked_ns_) * count / DEAD_CHECK_NS); due != 0; --due) {
            Lane &lane = lanes_[dead_at_++ % lanes_.size()];
            if (lane.end == Lane::ENDLESS && !process_lives(lane.pid, lane.process_start)) end(lane, 0);
        }
        dead_looked_ns_ = now;
    }

    void rest(int64_t now) {
        const int64_t idle_ns = now - active_ns_;
        if (!calm_ && idle_ns < SPIN_NS && !blocked_) return;
        const Rest &how = calm_ ? CALM : QUICK;
        if (idle_ns < how.sleep_after_ns || blocked_) {
            const timespec nap{0, how.nap_ns};
            nanosleep(&nap, nullptr);
            return;
        }
        Doorbell &door = ring_.control->drain;
        const uint32_t bell = load_acquire(door.bell);
        store_relaxed(door.want, 1u);
        const int64_t slice_ns = barrier_heavy() ? DEAD_CHECK_NS : 1'000'000;  // sync WAKE; without it a row may go unseen
        if (nothing_new()) futex_wait(door.bell, bell, slice_ns);
    }

    bool nothing_new() const {
        if (load_acquire(stop_) != 0 || load_acquire(ring_.control->lanes_changed) != 0) return false;
        if (load_acquire(ring_.header->status) != 0) return false;
        for (uint32_t kind = 0; kind < LaneRuns::KINDS; ++kind)
            if ((known_ >> kind & 1) != 0 && load_acquire(ring_.header->watermarks[LOGGED + kind].sequence) != seen_[kind]) return false;
        if (load_acquire(held_) != load_relaxed(holds_)) return false;
        for (const Lane &lane : lanes_)
            if (lane.end == Lane::ENDLESS && load_relaxed(holds_) == 0 &&
                load_acquire(lane.header->watermarks[PUBLISHED].sequence) != lane.drained)
                return false;
        return true;
    }

    // The log has stopped: say so in every lane. Their rows stay where they are, for the next writer.
    DrainEvent fail() {
        for (Lane &lane : lanes_) {
            store_relaxed(lane.header->log_errno, load_relaxed(ring_.header->log_errno));
            or_release(lane.header->status, uint32_t{STATUS_LOG_FAILED});
            for (uint32_t which = LOGGED; which < WATERMARK_COUNT; ++which)
                ring_doorbell(lane.control->doorbells[which].want, lane.control->doorbells[which].bell);
        }
        return DRAIN_FAILED;
    }

    RingWriter ring_;
    std::vector<Lane> lanes_;
    const uint32_t known_;
    const bool drop_, calm_;
    Journal *const journal_;
    uint64_t turn_rows_, first_ = 0, dead_at_ = 0;
    uint64_t seen_[LaneRuns::KINDS] = {};
    bool blocked_ = false, fenced_ = false, stop_told_ = false;
    int64_t active_ns_ = monotonic_ns(), dead_looked_ns_ = active_ns_, readers_looked_ns_ = 0, stop_at_ns_ = 0;
    alignas(LINE) uint32_t stop_ = 0;
    uint32_t held_ = 0, holds_ = 0;
};

}  // namespace ringmain
