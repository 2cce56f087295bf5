// Proving a whole sstable: not only its checksums, but that index, filter and footer say what the rows do.
//
// 1. Nothing is skipped: a row in the wrong place, a filter that lacks a key or a count that is off would make a lookup miss
//    rows without any checksum being wrong.
// 2. Damage is collected, a bounded number of places, one for each section or block; where blocks are bad, what only the
//    whole table can tell (counts, ranges) is not judged.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sstable_reader.hpp"

namespace ringmain {

class TableProof {
  public:
    static constexpr size_t DAMAGE_COUNT_MAX = 1000;

    explicit TableProof(TableReader &table) : table_(table) {}

    // Every section's checksum, their order, and that nothing lies between them. False: the blocks cannot be judged.
    bool prove_sections() {
        const TableFooter &footer = table_.footer();
        uint64_t position = footer.sections[SECTION_KEYS].offset;
        bool usable = true;
        for (uint32_t which = 0; which <= SECTION_SCHEMA; ++which) {
            const SectionEntry &section = footer.sections[which];
            TableDamage damage;
            if (!table_.prove_section(which, damage)) {
                collect(damage);
                usable = false;
            }
            if (section.offset < position) {
                add("sections that follow each other", footer_at(96 + 24 * which), position, section.offset);
                return false;
            }
            prove_zeros(position, section.offset);
            position = section.offset + section.bytes;
        }
        prove_zeros(position, footer.file_bytes - TABLE_PAGE_BYTES);
        if (!usable) return false;
        TableDamage damage;
        if (!table_.prove_sections(damage)) {
            collect(damage);
            return false;
        }
        const BlockEntry &last = table_.block_entries()[footer.block_count - 1];
        prove_zeros(last.offset + last.bytes, footer.sections[SECTION_KEYS].offset);
        return true;
    }

    // A block's stored bytes. False where they are damaged; `rows` is not to be called for it then.
    bool prove_stored(uint64_t block) {
        TableDamage damage;
        if (table_.prove_block(block, damage)) return true;
        collect(damage);
        whole_ = false;
        started_ = false;  // what follows cannot be compared with what came before
        return false;
    }

    // The rows of a block, decompressed. Blocks come in order.
    void prove_rows(uint64_t block, const char *rows) {
        const TableHeader &header = table_.header();
        const uint32_t words = table_.key_words();
        const BlockEntry &entry = table_.block_entries()[block];
        const uint64_t first = block * header.block_rows, count = table_.rows_in(block);
        for (uint64_t at = 0; at < count; ++at) {
            const char *row = rows + at * header.row_bytes;
            const uint64_t number = first + at, sequence = row_sequence(row);
            const uint64_t place = entry.offset + (table_.compressed() ? 0 : at * header.row_bytes);
            uint64_t key[KEY_WORDS_MAX] = {};
            int64_t timestamp_ns;
            table_.layout().encode(row, key);
            std::memcpy(&timestamp_ns, row + 8, 8);
            const uint64_t hash = hash_key(key, words);
            const int order = started_ ? compare_keys(last_key_, key, words) : -1;
            if (order > 0 || (order == 0 && sequence >= last_sequence_))
                return spoil("rows in the order of keys, the newest of a key first; behind sequence", place, last_sequence_, sequence);
            if (order == 0) ++shadowed_count_;
            if (at == 0) {
                if (!same_key(key, table_.block_key(block), words))
                    return spoil("the key of the block's first row",
                                 table_.footer().sections[SECTION_KEYS].offset + block * words * 8, key[0], table_.block_key(block)[0]);
                if (entry.first_sequence != sequence)
                    return spoil("the sequence of the block's first row",
                                 table_.footer().sections[SECTION_BLOCKS].offset + block * sizeof(BlockEntry) + 8, sequence,
                                 entry.first_sequence);
            }
            if (table_.tags(block)[at] != key_tag(hash))
                return spoil("the tag of the row's key", table_.footer().sections[SECTION_TAGS].offset + number, key_tag(hash),
                             table_.tags(block)[at]);
            const auto *bloom = reinterpret_cast<const uint64_t *>(table_.section(SECTION_BLOOM));
            if (!bloom_may_have(bloom, table_.footer().bloom_lines, hash))
                return spoil("a filter with every key; it lacks that of sequence",
                             table_.footer().sections[SECTION_BLOOM].offset +
                                 8 * static_cast<uint64_t>(bloom_line(bloom, table_.footer().bloom_lines, hash) - bloom),
                             sequence, 0);
            if (!first_known_ && number == 0) {
                std::memcpy(first_key_, key, sizeof key);
                first_known_ = true;
            }
            sequence_min_ = std::min(sequence_min_, sequence);
            sequence_max_ = std::max(sequence_max_, sequence);
            timestamp_min_ns_ = std::min(timestamp_min_ns_, timestamp_ns);
            timestamp_max_ns_ = std::max(timestamp_max_ns_, timestamp_ns);
            std::memcpy(last_key_, key, sizeof key);
            last_sequence_ = sequence;
            started_ = true;
            ++row_count_;
        }
    }

    // What the footer says of all rows together.
    void finish() {
        if (!whole_) return;
        const TableFooter &footer = table_.footer();
        const uint64_t tombstones = footer.tombstone_count == 0 ? 0 : marked();
        compare("as many rows", 24, row_count_, footer.row_count);
        compare("as many tombstones", 40, tombstones, footer.tombstone_count);
        compare("as many rows with the key of the row before", 48, shadowed_count_, footer.shadowed_count);
        compare("the smallest sequence", 56, sequence_min_, footer.sequence_min);
        compare("the greatest sequence", 64, sequence_max_, footer.sequence_max);
        compare("the smallest time", 72, static_cast<uint64_t>(timestamp_min_ns_), static_cast<uint64_t>(footer.timestamp_min_ns));
        compare("the greatest time", 80, static_cast<uint64_t>(timestamp_max_ns_), static_cast<uint64_t>(footer.timestamp_max_ns));
        for (uint32_t word = 0; word < KEY_WORDS_MAX; ++word) {
            compare("the first row's key", 288 + 8 * word, first_key_[word], footer.key_min[word]);
            compare("the last row's key", 544 + 8 * word, last_key_[word], footer.key_max[word]);
        }
    }

    uint64_t row_count() const { return row_count_; }
    const std::vector<TableDamage> &found() const { return found_; }

  private:
    uint64_t footer_at(uint64_t offset) const { return table_.footer().file_bytes - TABLE_PAGE_BYTES + offset; }

    void add(const char *what, uint64_t offset, uint64_t expected, uint64_t found) { collect({what, offset, expected, found}); }

    void collect(const TableDamage &damage) {
        if (found_.size() < DAMAGE_COUNT_MAX) found_.push_back(damage);
    }

    void spoil(const char *what, uint64_t offset, uint64_t expected, uint64_t found) {
        add(what, offset, expected, found);
        whole_ = false;
        started_ = false;
    }

    void compare(const char *what, uint64_t offset, uint64_t rows_say, uint64_t footer_says) {
        if (rows_say != footer_says) add(what, footer_at(offset), rows_say, footer_says);
    }

    void prove_zeros(uint64_t from, uint64_t to) {
        for (uint64_t at = from; at < to; ++at)
            if (table_.base()[at] != 0) return add("zeros between sections", at, 0, static_cast<uint8_t>(table_.base()[at]));
    }

    // Bits set in the tombstone section; those behind the last row count too, and are then one too many.
    uint64_t marked() const {
        const auto *words = reinterpret_cast<const uint64_t *>(table_.section(SECTION_TOMBSTONES));
        uint64_t count = 0;
        for (uint64_t word = 0; word < table_.section_bytes(SECTION_TOMBSTONES) / 8; ++word)
            count += static_cast<uint64_t>(__builtin_popcountll(words[word]));
        return count;
    }

    TableReader &table_;
    std::vector<TableDamage> found_;
    bool whole_ = true, started_ = false, first_known_ = false;
    uint64_t first_key_[KEY_WORDS_MAX] = {}, last_key_[KEY_WORDS_MAX] = {};
    uint64_t last_sequence_ = 0, row_count_ = 0, shadowed_count_ = 0;
    uint64_t sequence_min_ = UINT64_MAX, sequence_max_ = 0;
    int64_t timestamp_min_ns_ = INT64_MAX, timestamp_max_ns_ = INT64_MIN;
};

}  // namespace ringmain
