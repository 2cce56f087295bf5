// Finding keys in a tree: memtables, then level 0, then one table of each deeper level; the first that has the key is right.
//
// 1. This is one state of a tree, never changed once built. What it points to is held by the caller.
// 2. Many keys at once go in stages over a group of them, each stage fetching what the next one reads, so that the misses of
//    different keys overlap: on one key they would follow each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memtable.hpp"
#include "sstable_reader.hpp"

namespace ringmain {

struct Place {
    const char *row = nullptr;
    bool tombstone = false;
    TableReader *table = nullptr;  // where a block is needed or damaged
    uint64_t block = 0;
    TableDamage damage;
};

class TreeLookup {
  public:
    explicit TreeLookup(const KeyLayout &layout, uint32_t row_bytes) : layout_(layout), row_bytes_(row_bytes) {}

    void add_memtable(const Memtable *memtable) { memtables_.push_back(memtable); }  // the newest first
    void add_level(std::vector<TableReader *> tables) { levels_.push_back(std::move(tables)); }  // by key, ranges disjoint; level 0 one by one

    // `place.row` is the newest row visible at that sequence, possibly a tombstone. NEEDS_BLOCK: call again with that block; the
    // search goes on there.
    Lookup find(const uint64_t *key, uint64_t hash, uint64_t visible, Place &place, const TableReader *given_table = nullptr,
                uint64_t given_block = 0, const char *given = nullptr) const {
        bool mine = given_table != nullptr;
        if (!mine) {
            for (const Memtable *memtable : memtables_) {
                place.row = memtable->find(key, hash, visible, place.tombstone);
                if (place.row != nullptr) return Lookup::FOUND;
            }
        }
        for (const auto &level : levels_) {
            TableReader *table = table_for(level, key);
            if (table == nullptr || (mine && table != given_table)) continue;
            if (!table->prove_sections(place.damage)) return damaged(place, table);
            Found found;
            const Lookup result = table->find(key, hash, visible, found, place.damage, mine ? given_block : UINT64_MAX, mine ? given : nullptr);
            mine = false;
            switch (result) {
            case Lookup::ABSENT: continue;
            case Lookup::FOUND:
                place.row = found.row;
                place.tombstone = found.tombstone;
                return Lookup::FOUND;
            case Lookup::NEEDS_BLOCK:
                place.table = table;
                place.block = found.number;
                return Lookup::NEEDS_BLOCK;
            case Lookup::DAMAGED: return damaged(place, table);
            }
        }
        return Lookup::ABSENT;
    }

    // Look up the keys of `count` rows; copies what is found to `out`, and says so in `flags`. Stops at the first key that needs
    // more than this (a compressed or damaged block) and returns its index; `count` when all are done.
    uint64_t find_many(const char *keys, uint64_t count, uint64_t visible, char *out, uint8_t *flags) const {
        Probe probes[GROUP];
        for (uint64_t first = 0; first < count; first += GROUP) {
            const uint64_t size = std::min<uint64_t>(GROUP, count - first);
            for (uint64_t at = 0; at < size; ++at) start(probes[at], keys + (first + at) * row_bytes_);
            for (uint64_t at = 0; at < size; ++at) find_block(probes[at], visible);
            for (uint64_t at = 0; at < size; ++at) find_row(probes[at]);
            for (uint64_t at = 0; at < size; ++at) {
                Probe &probe = probes[at];
                const char *row = probe.row;
                if (row == nullptr || (probe.guess && !fits(probe, visible))) {
                    Place place;
                    const Lookup result = find(probe.key, probe.hash, visible, place);
                    if (result == Lookup::NEEDS_BLOCK || result == Lookup::DAMAGED) return first + at;
                    row = result == Lookup::FOUND && !place.tombstone ? place.row : nullptr;
                } else if (probe.tombstone) {
                    row = nullptr;
                }
                flags[first + at] = row != nullptr;
                if (row != nullptr) std::memcpy(out + (first + at) * row_bytes_, row, row_bytes_);
            }
        }
        return count;
    }

  private:
    static constexpr uint64_t GROUP = 32;

    struct Probe {
        uint64_t key[KEY_WORDS_MAX];
        uint64_t hash;
        TableReader *table;
        uint64_t block, number;
        const char *row;
        bool guess, tombstone;  // guess: only the tag has been compared
    };

    static Lookup damaged(Place &place, TableReader *table) {
        place.table = table;
        return Lookup::DAMAGED;
    }

    TableReader *table_for(const std::vector<TableReader *> &level, const uint64_t *key) const {
        size_t low = 0, high = level.size();
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (compare_keys(level[middle]->footer().key_max, key, layout_.words()) < 0) low = middle + 1;
            else high = middle;
        }
        return low < level.size() ? level[low] : nullptr;
    }

    void start(Probe &probe, const char *row) const {
        layout_.encode(row, probe.key);
        probe.hash = hash_key(probe.key, layout_.words());
        probe.table = nullptr;
        probe.row = nullptr;
        probe.guess = probe.tombstone = false;
        for (const Memtable *memtable : memtables_) memtable->prefetch(probe.hash);
        for (const auto &level : levels_)
            if (const TableReader *table = table_for(level, probe.key)) table->prefetch_filter(probe.hash);
    }

    // The memtables' answer, or the block of the first table whose filter does not rule the key out.
    void find_block(Probe &probe, uint64_t visible) const {
        for (const Memtable *memtable : memtables_) {
            probe.row = memtable->find(probe.key, probe.hash, visible, probe.tombstone);
            if (probe.row != nullptr) return;
        }
        TableDamage damage;
        for (const auto &level : levels_) {
            TableReader *table = table_for(level, probe.key);
            if (table == nullptr) continue;
            if (!table->prove_sections(damage)) return;  // what lies deeper is older; `find` says what is wrong here
            if (!table->may_have(probe.key, probe.hash)) continue;
            if (table->compressed()) return;
            probe.table = table;
            probe.block = table->block_of(probe.key, visible);
            __builtin_prefetch(table->tags(probe.block));
            return;
        }
    }

    // The first row in the block whose tag is right.
    void find_row(Probe &probe) const {
        if (probe.table == nullptr) return;
        TableDamage damage;
        const uint8_t *tags = probe.table->tags(probe.block);
        const uint64_t count = probe.table->rows_in(probe.block);
        const void *at = std::memchr(tags, key_tag(probe.hash), count);
        if (at == nullptr || !probe.table->prove_block(probe.block, damage)) return;
        const auto which = static_cast<uint64_t>(static_cast<const uint8_t *>(at) - tags);
        probe.row = probe.table->stored_block(probe.block) + which * row_bytes_;
        probe.number = probe.block * probe.table->block_rows() + which;
        probe.guess = true;
        for (uint32_t line = 0; line < row_bytes_ && line < 256; line += 64) __builtin_prefetch(probe.row + line);
    }

    bool fits(Probe &probe, uint64_t visible) const {
        uint64_t there[KEY_WORDS_MAX];
        layout_.encode(probe.row, there);
        probe.tombstone = probe.table->is_tombstone(probe.number);
        return same_key(there, probe.key, layout_.words()) && row_sequence(probe.row) <= visible;
    }

    const KeyLayout layout_;
    const uint32_t row_bytes_;
    std::vector<const Memtable *> memtables_;
    std::vector<std::vector<TableReader *>> levels_;
};

}  // namespace ringmain
