// The ring: one writer, any number of readers, no lock and no compare-and-swap on the way of a record.
//
// 1. Sequence s lives in slot s & (slot_count - 1). Slots in (claimed - slot_count, published] hold their records whole.
// 2. Before a writer touches a slot, `claimed` covers the new sequence (sync CLAIM); after the record is whole, `published`
//    does (sync PUBLISH). It claims a little ahead, so that the line of `claimed` moves between cores only now and then.
// 3. A reader uses rows in place and asks afterwards whether `claimed` reached them meanwhile (sync LAP).
// 4. The writer never passes `limit`: slot_count beyond what the journal has logged and every reliable reader has consumed.
//    A lane's publisher never passes slot_count beyond what has been drained.
// 5. A ring that was fenced ends at `ended`, whatever its writer, if it lives, still publishes (sync FENCE).
// 6. Abandoning a claim leaves `claimed` ahead of `published`; the next claim takes the same sequences again.
// tests/model/ring.pml is the model of 1-3 and 6, register.pml of 4.
#pragma once

#include <cstring>
#include <vector>

#include "atomics.hpp"
#include "layout.hpp"
#include "readers.hpp"
#include "wait.hpp"

namespace ringmain {

struct RingWriter {
    DataHeader *header = nullptr;
    ControlHeader *control = nullptr;
    char *slots = nullptr;
    uint64_t mask = 0, slot_count = 0, claim_ahead = 0;
    uint32_t row_bytes = 0;
    const uint64_t *freed = nullptr;  // up to here slots are free but for readers: logged, of a lane drained; null: everywhere
    uint32_t reader_count = READERS_MAX;  // entries in the reader table; a lane has none
    uint64_t published = 0, claimed = 0, limit = 0;
    int64_t last_timestamp_ns = 0;
    std::vector<uint32_t> reliable;   // entries that hold the writer back
    const uint32_t *journal_asleep = nullptr;  // of whoever reads this ring first; null without a journal

    void open(char *data, ControlHeader *control_segment, bool has_log) {
        freed = has_log ? &reinterpret_cast<DataHeader *>(data)->watermarks[LOGGED].sequence : nullptr;
        map(data, control_segment);
    }

    void open_lane(char *data) {
        freed = &reinterpret_cast<DataHeader *>(data)->watermarks[DRAINED].sequence;
        reader_count = 0;
        map(data, lane_control(data));
    }

    // Go on in the lane that follows this one, which was fenced: as large, with `ended` as the sequence before its first.
    // along: what was published behind that goes along.
    void follow(char *data, uint64_t ended, bool along) {
        const RingWriter former = *this;
        open_lane(data);
        if (!along || former.published <= ended) return;
        claim(former.published);
        for (uint64_t sequence = ended + 1; sequence <= former.published; ++sequence)
            std::memcpy(slot(sequence), former.slot(sequence), row_bytes);
        publish(former.published);
    }

    void map(char *data, ControlHeader *control_segment) {
        header = reinterpret_cast<DataHeader *>(data);
        control = control_segment;
        slots = data + header->slots_offset;
        slot_count = header->slot_count;
        mask = slot_count - 1;
        row_bytes = header->row_bytes;
        claim_ahead = slot_count / 64 > 1024 ? 1024 : slot_count / 64;
        published = load_relaxed(header->watermarks[PUBLISHED].sequence);
        claimed = load_relaxed(header->watermarks[CLAIMED].sequence);
        uint64_t newest;
        std::memcpy(&newest, slot(published), 8);
        if (published != 0 && newest == published) {  // no later record has an earlier stamp
            int64_t stamp;
            std::memcpy(&stamp, slot(published) + 8, 8);
            if (stamp > last_timestamp_ns) last_timestamp_ns = stamp;
        }
        rescan();
    }

    char *slot(uint64_t sequence) const { return slots + (sequence & mask) * row_bytes; }

    int64_t stamp_ns() {  // never steps back within a topic, whatever the clock does
        const int64_t now = wall_ns();
        if (now > last_timestamp_ns) last_timestamp_ns = now;
        return last_timestamp_ns;
    }

    // True where `count` more records may be written without asking anybody. The status word is this bus's own or the
    // fence of a newer writer; `limit` is what the readers last allowed.
    bool may_publish(uint64_t count) const {
        return published + count <= limit && load_relaxed(control->attention.wake[1]) == 0 && load_relaxed(header->status) == 0;
    }

    void claim(uint64_t last) {
        if (last <= claimed) return;
        claimed = last + claim_ahead <= limit ? last + claim_ahead : last;
        store_relaxed(header->watermarks[CLAIMED].sequence, claimed);
        fence_release();  // sync CLAIM: no byte of the new record may be seen before the claim is
    }

    void publish(uint64_t last) {
        published = last;
        store_release(header->watermarks[PUBLISHED].sequence, last);  // sync PUBLISH
    }

    // After `publish`: whether the record came too late. Either whoever fences sees what was published, or this sees the fence:
    // there is a heavy barrier between the two on the other side (sync FENCE).
    bool fenced() const {
        std::atomic_signal_fence(std::memory_order_seq_cst);
        return (load_relaxed(header->status) & STATUS_FENCED) != 0;
    }

    bool someone_sleeps() const {  // sync WAKE: ordered after `publish` by the sleeper's heavy barrier
        std::atomic_signal_fence(std::memory_order_seq_cst);
        return load_relaxed(control->attention.wake[0]) != 0;
    }

    void wake_readers() { ring_doorbell(control->attention.wake[0], control->doorbells[PUBLISHED].bell); }

    // Look through the reader table for those that hold the writer back.
    void rescan() {
        exchange(control->attention.wake[1], 0u);
        std::atomic_thread_fence(std::memory_order_seq_cst);  // sync REGISTER: clear first, then look
        reliable.clear();
        for (uint32_t index = 0; index < reader_count; ++index) {
            const ReaderEntry &entry = control->readers[index];
            if (owner_state(load_acquire(entry.owner)) == READER_ACTIVE && load_relaxed(entry.policy) == RELIABLE)
                reliable.push_back(index);
        }
        update_limit();
    }

    uint64_t freed_allows() const { return freed != nullptr ? load_acquire(*freed) + slot_count : UINT64_MAX; }

    // What a reader claims to have consumed is taken for no more than what was published.
    uint64_t consumed(uint32_t index) const {
        const uint64_t value = load_acquire(control->readers[index].consumed);
        return value < published ? value : published;
    }

    void update_limit() {
        uint64_t allowed = freed_allows();
        for (uint32_t index : reliable) {
            const uint64_t reader = consumed(index) + slot_count;
            if (reader < allowed) allowed = reader;
        }
        limit = allowed;
    }

    // Drop the reliable readers that leave no room for `last`; returns how many.
    uint32_t drop_slow_readers(uint64_t last) {
        uint32_t dropped = 0;
        for (uint32_t index : reliable) {
            if (consumed(index) + slot_count >= last) continue;
            ReaderEntry &entry = control->readers[index];
            uint64_t owner = load_acquire(entry.owner);
            if (owner_state(owner) == READER_ACTIVE &&
                compare_exchange(entry.owner, owner, owner_word(owner_pid(owner), READER_DROPPED)))
                ++dropped;
        }
        if (dropped != 0) rescan();
        return dropped;
    }

    // Wait for room for `count` records: spin, then yield, then sleep 50 µs at a time, for at most `nanoseconds`.
    bool wait_for_room(uint64_t count, int64_t nanoseconds) {
        const int64_t deadline = monotonic_ns() + nanoseconds;
        for (uint32_t turn = 0;; ++turn) {
            if (load_relaxed(control->attention.wake[1]) != 0) rescan(); else update_limit();
            if (load_relaxed(header->status) != 0) return false;
            if (published + count <= limit) return true;
            if (monotonic_ns() >= deadline) return false;
            if (turn < 64) continue;
            if (turn < 1024) {
                sched_yield();
            } else {
                const timespec nap{0, 50'000};
                nanosleep(&nap, nullptr);
            }
        }
    }
};

// Up to where a topic's records will not go any more: durable, or logged where the log is never synced, and within the ring's end.
inline uint64_t safe_position(const DataHeader &ring) {
    const uint64_t safe = load_acquire(ring.watermarks[ring.syncs ? DURABLE : LOGGED].sequence);
    if ((load_acquire(ring.status) & STATUS_FENCED) == 0) return safe;  // asked afterwards: a fence before `safe` was read is seen
    const uint64_t ended = load_acquire(ring.watermarks[ENDED].sequence);
    return safe < ended ? safe : ended;
}

// Ends a ring whose writer may be in the middle of a call: sets `bits`, FENCED among them, settles where it ends, and returns
// that; `last`: not behind this. What the call still publishes is either within, or its caller sees the fence (sync FENCE). Nobody is woken yet.
inline uint64_t fence_ring(DataHeader &header, uint32_t bits, uint64_t last = UINT64_MAX) {
    or_release(header.status, bits);
    if (!barrier_heavy()) usleep(50'000);  // more than any store takes to be seen
    if ((load_acquire(header.status) & STATUS_SETTLED) == 0) {  // else an earlier one, who then died, has settled it
        const uint64_t published = load_acquire(header.watermarks[PUBLISHED].sequence);
        store_release(header.watermarks[ENDED].sequence, published < last ? published : last);
        or_release(header.status, uint32_t{STATUS_SETTLED});
    }
    return load_acquire(header.watermarks[ENDED].sequence);
}

enum PollResult : int { POLL_NOTHING = 0, POLL_ROWS = 1, POLL_LAPPED = 2 };

struct RingReader {
    const DataHeader *header = nullptr;
    ControlHeader *control = nullptr;
    const char *slots = nullptr;
    uint64_t mask = 0, slot_count = 0;
    uint32_t row_bytes = 0;
    Watermark follow = PUBLISHED;
    ReaderEntry *entry = nullptr;
    uint64_t cursor = 0;              // the last sequence handed out

    void open(const char *data, ControlHeader *control_segment, Watermark followed) {
        header = reinterpret_cast<const DataHeader *>(data);
        control = control_segment;
        slots = data + header->slots_offset;
        slot_count = header->slot_count;
        mask = slot_count - 1;
        row_bytes = header->row_bytes;
        follow = followed;
    }

    uint64_t oldest() const {  // the first sequence whose slot is not claimed over
        const uint64_t claimed = load_acquire(header->watermarks[CLAIMED].sequence);
        return claimed < slot_count ? 1 : claimed - slot_count + 1;
    }

    bool intact(uint64_t first) const {
        fence_acquire();  // sync LAP: finish reading the rows before looking at `claimed`
        const uint64_t claimed = load_relaxed(header->watermarks[CLAIMED].sequence);
        return claimed < slot_count || first > claimed - slot_count;
    }

    // The last sequence there is to read: the followed watermark, and in a fenced ring nothing behind its end.
    uint64_t readable() const {
        const uint64_t last = load_acquire(header->watermarks[follow].sequence);  // sync PUBLISH
        if (last <= cursor || (load_relaxed(header->status) & STATUS_FENCED) == 0) return last;
        const uint64_t ended = load_acquire(header->watermarks[ENDED].sequence);  // 0: not settled yet
        return last < ended ? last : ended;
    }

    // Rows behind the cursor, contiguous in memory: `first` and `count` are set with POLL_ROWS. Never waits. What another
    // process wrote into the watermarks cannot lead outside the slots.
    PollResult poll(uint64_t count_max, uint64_t &first, uint64_t &count) {
        if (entry != nullptr) store_release(entry->consumed, cursor);
        const uint64_t last = readable();
        if (last <= cursor) return POLL_NOTHING;
        first = cursor + 1;
        if (!intact(first)) return POLL_LAPPED;
        count = last - cursor;
        const uint64_t until_end = slot_count - (first & mask);
        if (count > until_end) count = until_end;
        if (count > count_max) count = count_max;
        return POLL_ROWS;
    }

    const char *slot(uint64_t sequence) const { return slots + (sequence & mask) * row_bytes; }
};

}  // namespace ringmain
