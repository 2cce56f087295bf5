// Grouping rows by their key: a number for each row, the same for rows whose key fields' bytes are the same.
//
// 1. Groups are numbered 0, 1, 2, … in the order in which their keys are first met; a key keeps its number until `clear`.
// 2. The table is open addressing over a power of two, at most half full. A slot's tag is the key itself where the key is one
//    word, so that the keys are not looked up elsewhere; otherwise it is the key's hash, and the key stands in `keys_`.
// 3. Keys have the form of storage/key.hpp, and the hash is the one stored in tables: no release may change either. So the
//    remainder of a key's hash names the same partition in every process, on every machine.
// Rows may be garbage (the writer comes round while they are read): any bytes make some key.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "key.hpp"

namespace ringmain {

// Rows at a distance of `stride` bytes, which may be negative.
struct RowSpan {
    const char *first;
    int64_t stride;
    uint64_t count;
};

// Ways to make a row's key; `key` has room for `words` of them.
template <typename Number>
struct NumberKey {  // one field that is a number
    static constexpr bool one_word = true;
    uint32_t offset, words;
    uint64_t flip;  // the sign's bit, where it has one

    void operator()(const char *row, uint64_t *key) const {
        Number value;
        std::memcpy(&value, row + offset, sizeof value);
        *key = (static_cast<uint64_t>(value) ^ flip) << (64 - 8 * sizeof value);
    }
};

struct ShortKey {  // fields of 8 bytes together, or less
    static constexpr bool one_word = true;
    const KeyLayout &layout;
    uint32_t words;

    static uint64_t load(const char *at, uint32_t bytes) {
        uint64_t value = 0;
        switch (bytes) {  // copies of a known size are single instructions
            case 1: std::memcpy(&value, at, 1); break;
            case 2: std::memcpy(&value, at, 2); break;
            case 4: std::memcpy(&value, at, 4); break;
            case 8: std::memcpy(&value, at, 8); break;
            default: std::memcpy(&value, at, bytes);
        }
        return value;
    }

    void operator()(const char *row, uint64_t *key) const {
        uint64_t together = 0;
        for (const KeyField &field : layout.fields()) {
            uint64_t value = load(row + field.offset, field.bytes);
            if (field.kind == KEY_BYTES) value = swap_bytes(value) >> (64 - 8 * field.bytes);
            if (field.kind == KEY_SIGNED) value ^= 1ull << (8 * field.bytes - 1);
            together = field.bytes == 8 ? value : together << (8 * field.bytes) | value;
        }
        *key = together << (64 - 8 * layout.bytes());
    }
};

struct LongKey {
    static constexpr bool one_word = false;
    const KeyLayout &layout;
    uint32_t words;

    void operator()(const char *row, uint64_t *key) const { layout.encode(row, key); }
};

// Call `work` with the fastest way to make the layout's keys.
template <typename Work>
void with_keys(const KeyLayout &layout, Work work) {
    const KeyField &field = layout.fields().front();
    if (layout.fields().size() == 1 && (field.kind == KEY_UNSIGNED || field.kind == KEY_SIGNED)) {
        const uint64_t flip = field.kind == KEY_SIGNED ? 1ull << (8 * field.bytes - 1) : 0;
        switch (field.bytes) {
            case 1: return work(NumberKey<uint8_t>{field.offset, 1, flip});
            case 2: return work(NumberKey<uint16_t>{field.offset, 1, flip});
            case 4: return work(NumberKey<uint32_t>{field.offset, 1, flip});
            default: return work(NumberKey<uint64_t>{field.offset, 1, flip});
        }
    }
    if (layout.words() == 1) return work(ShortKey{layout, 1});
    return work(LongKey{layout, layout.words()});
}

// Whether each row's key hash leaves `remainder` when divided by `divisor`.
inline void mark_partition(const KeyLayout &layout, RowSpan rows, uint64_t remainder, uint64_t divisor, bool *marks) {
    with_keys(layout, [&](auto make_key) {
        uint64_t key[KEY_WORDS_MAX];
        const char *row = rows.first;
        for (uint64_t index = 0; index < rows.count; ++index, row += rows.stride) {
            make_key(row, key);
            marks[index] = hash_key(key, make_key.words) % divisor == remainder;
        }
    });
}

class Grouping {
  public:
    explicit Grouping(KeyLayout layout) : layout_(std::move(layout)), slots_(SLOTS_MIN) {}

    uint64_t count() const { return count_; }

    // The number of each row's group; rows of new keys make new groups. Throws bad_alloc, the groups made until then staying.
    void number(RowSpan rows, int64_t *numbers) {
        with_keys(layout_, [&](auto make_key) {
            uint64_t key[KEY_WORDS_MAX];
            const char *row = rows.first;
            for (uint64_t index = 0; index < rows.count; ++index, row += rows.stride) {
                make_key(row, key);
                numbers[index] = find_or_add<decltype(make_key)::one_word>(key);
            }
        });
    }

    // Whether each row's key belongs to a group. Nothing is added.
    void mark_known(RowSpan rows, bool *marks) const {
        with_keys(layout_, [&](auto make_key) {
            constexpr bool one_word = decltype(make_key)::one_word;
            uint64_t key[KEY_WORDS_MAX];
            const char *row = rows.first;
            for (uint64_t index = 0; index < rows.count; ++index, row += rows.stride) {
                make_key(row, key);
                const uint64_t hash = hash_key(key, layout_.words());
                marks[index] = slots_[place_of<one_word>(one_word ? key[0] : hash, hash, key)].group != 0;
            }
        });
    }

    void clear() {
        const bool too_large = slots_.size() > SLOTS_MIN && count_ < slots_.size() / 16;
        if (too_large)
            std::vector<Slot>(slots_.size() / 2).swap(slots_);
        else
            std::memset(slots_.data(), 0, slots_.size() * sizeof(Slot));
        keys_.clear();
        count_ = 0;
    }

  private:
    static constexpr uint64_t SLOTS_MIN = 1024;

    struct Slot {
        uint64_t tag;
        uint64_t group;  // its number + 1; 0: free
    };

    // Not by the lowest bits: within a partition they may all be the same.
    static uint64_t start_of(uint64_t hash, uint64_t mask) { return (hash >> 20) & mask; }

    template <bool OneWord>
    uint64_t place_of(uint64_t tag, uint64_t hash, const uint64_t *key) const {
        const uint64_t mask = slots_.size() - 1;
        for (uint64_t at = start_of(hash, mask);; at = (at + 1) & mask) {
            const Slot &slot = slots_[at];
            if (slot.group == 0) return at;
            if (slot.tag != tag) continue;
            if (OneWord || same_key(key, &keys_[(slot.group - 1) * layout_.words()], layout_.words())) return at;
        }
    }

    template <bool OneWord>
    int64_t find_or_add(const uint64_t *key) {
        const uint64_t hash = hash_key(key, OneWord ? 1 : layout_.words()), tag = OneWord ? key[0] : hash;
        uint64_t at = place_of<OneWord>(tag, hash, key);
        if (slots_[at].group != 0) return static_cast<int64_t>(slots_[at].group - 1);
        if (2 * (count_ + 1) > slots_.size()) {
            grow<OneWord>();
            at = place_of<OneWord>(tag, hash, key);
        }
        if (!OneWord) keys_.insert(keys_.end(), key, key + layout_.words());
        slots_[at] = {tag, ++count_};
        return static_cast<int64_t>(count_ - 1);
    }

    template <bool OneWord>
    void grow() {
        std::vector<Slot> larger(2 * slots_.size());
        const uint64_t mask = larger.size() - 1;
        for (const Slot &slot : slots_) {
            if (slot.group == 0) continue;
            uint64_t at = start_of(OneWord ? hash_key(&slot.tag, 1) : slot.tag, mask);
            while (larger[at].group != 0) at = (at + 1) & mask;
            larger[at] = slot;
        }
        slots_.swap(larger);
    }

    KeyLayout layout_;
    std::vector<Slot> slots_;
    std::vector<uint64_t> keys_;  // by group, where a key is more than one word
    uint64_t count_ = 0;
};

}  // namespace ringmain
