// Keys: a row's key fields in a form that compares as they do.
//
// A key is the key fields' bytes one after the other, each turned so that comparing bytes from the left compares values:
// unsigned numbers big-endian; signed ones with the sign bit flipped; floats by their IEEE order (-NaN < -inf < … < -0 < 0 <
// … < inf < NaN); bytes as they are. It is held as 64-bit words, the first byte on top and zeros behind the last, so that
// comparing words from the first on is the same. Two keys are equal exactly when their fields' bytes are.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

namespace ringmain {

inline constexpr uint32_t KEY_WORDS_MAX = 32;  // 256 bytes

enum KeyKind : uint32_t { KEY_UNSIGNED = 0, KEY_SIGNED = 1, KEY_FLOAT = 2, KEY_BYTES = 3 };

struct KeyField {
    uint32_t offset;  // in the row
    uint32_t bytes;   // 1, 2, 4 or 8 for a number
    KeyKind kind;
};

inline uint64_t swap_bytes(uint64_t value) { return __builtin_bswap64(value); }

// A number's bytes as an unsigned number that orders like it.
inline uint64_t ordered_number(const char *at, const KeyField &field) {
    uint64_t value = 0;
    std::memcpy(&value, at, field.bytes);
    const uint64_t sign = 1ull << (8 * field.bytes - 1);
    if (field.kind == KEY_SIGNED) return value ^ sign;
    if (field.kind == KEY_FLOAT) {
        const uint64_t all = sign | (sign - 1);
        return value & sign ? value ^ all : value ^ sign;
    }
    return value;
}

inline uint64_t number_of_ordered(uint64_t ordered, const KeyField &field) {
    const uint64_t sign = 1ull << (8 * field.bytes - 1);
    if (field.kind == KEY_SIGNED) return ordered ^ sign;
    if (field.kind == KEY_FLOAT) return ordered & sign ? ordered ^ sign : ordered ^ (sign | (sign - 1));
    return ordered;
}

class KeyLayout {
  public:
    // Fields in the order of comparison; at most 8 * KEY_WORDS_MAX bytes together.
    explicit KeyLayout(std::vector<KeyField> fields) : fields_(std::move(fields)) {
        for (const KeyField &field : fields_) bytes_ += field.bytes;
        words_ = (bytes_ + 7) / 8;
        whole_ = true;
        for (const KeyField &field : fields_)
            if (field.bytes % 8 != 0) whole_ = false;
    }

    uint32_t words() const { return words_; }
    uint32_t bytes() const { return bytes_; }
    const std::vector<KeyField> &fields() const { return fields_; }

    // Write a row's key, `words()` of them.
    void encode(const char *row, uint64_t *key) const {
        if (whole_) {
            for (const KeyField &field : fields_) {
                const char *at = row + field.offset;
                if (field.kind == KEY_BYTES) {
                    for (uint32_t done = 0; done < field.bytes; done += 8) {
                        uint64_t word;
                        std::memcpy(&word, at + done, 8);
                        *key++ = swap_bytes(word);
                    }
                } else {
                    *key++ = ordered_number(at, field);
                }
            }
            return;
        }
        key[words_ - 1] = 0;
        char *to = reinterpret_cast<char *>(key);
        for (const KeyField &field : fields_) {
            const char *at = row + field.offset;
            if (field.kind == KEY_BYTES) {
                std::memcpy(to, at, field.bytes);
            } else {
                const uint64_t big = swap_bytes(ordered_number(at, field) << (64 - 8 * field.bytes));
                std::memcpy(to, &big, field.bytes);
            }
            to += field.bytes;
        }
        for (uint32_t word = 0; word < words_; ++word) key[word] = swap_bytes(key[word]);
    }

    // Write the key fields of a row from its key; the row's other bytes are let be.
    void decode(const uint64_t *key, char *row) const {
        uint64_t turned[KEY_WORDS_MAX];
        for (uint32_t word = 0; word < words_; ++word) turned[word] = swap_bytes(key[word]);
        const char *from = reinterpret_cast<const char *>(turned);
        for (const KeyField &field : fields_) {
            char *at = row + field.offset;
            if (field.kind == KEY_BYTES) {
                std::memcpy(at, from, field.bytes);
            } else {
                uint64_t big = 0;
                std::memcpy(&big, from, field.bytes);
                const uint64_t value = number_of_ordered(swap_bytes(big) >> (64 - 8 * field.bytes), field);
                std::memcpy(at, &value, field.bytes);
            }
            from += field.bytes;
        }
    }

    // Whether two rows have the same key.
    bool same(const char *one, const char *other) const {
        for (const KeyField &field : fields_)
            if (std::memcmp(one + field.offset, other + field.offset, field.bytes) != 0) return false;
        return true;
    }

  private:
    std::vector<KeyField> fields_;
    uint32_t bytes_ = 0, words_ = 0;
    bool whole_ = false;  // every field fills whole words
};

inline int compare_keys(const uint64_t *one, const uint64_t *other, uint32_t words) {
    for (uint32_t word = 0; word < words; ++word)
        if (one[word] != other[word]) return one[word] < other[word] ? -1 : 1;
    return 0;
}

inline bool same_key(const uint64_t *one, const uint64_t *other, uint32_t words) {
    for (uint32_t word = 0; word < words; ++word)
        if (one[word] != other[word]) return false;
    return true;
}

// Stored in sstables (bloom filter, tags): never changes. The multiply-and-fold step is that of Wang Yi's wyhash.
inline uint64_t hash_key(const uint64_t *key, uint32_t words) {
    uint64_t hash = 0x9E3779B97F4A7C15ull;
    for (uint32_t word = 0; word < words; ++word) {
        const auto product = static_cast<unsigned __int128>(key[word] ^ 0xA0761D6478BD642Full) * (hash ^ 0xE7037ED1A0B428DBull);
        hash = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }
    hash ^= hash >> 32;
    hash *= 0xD6E8FEB86659FD93ull;
    return hash ^ (hash >> 32);
}

}  // namespace ringmain
