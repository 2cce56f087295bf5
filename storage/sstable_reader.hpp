// Reading an sstable that lies mapped, untrusted until checked.
//
// 1. `open` proves header and footer and that every section lies within the file and has the size that the counts demand;
//    each section's checksum is proven before its first use, each block's before its first row is handed out (once each).
// 2. Nothing here changes the mapped bytes. Any number of threads read; what was proven is remembered in relaxed atomics.
// 3. Rows of an uncompressed table are read where they lie. A compressed block must be handed in decompressed.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "atomics.hpp"
#include "memtable.hpp"
#include "sstable_format.hpp"

namespace ringmain {

// What the two values of a damage are: numbers, sizes in bytes, or the eight bytes of a magic as they stand in the file.
enum class DamageKind : uint8_t { NUMBERS, SIZES, MAGICS };

// What is wrong with a table, for the message: where in the file, and the two values that should agree.
struct TableDamage {
    const char *what = nullptr;
    uint64_t offset = 0, expected = 0, found = 0;
    DamageKind kind = DamageKind::NUMBERS;
};

enum class Lookup { ABSENT, FOUND, NEEDS_BLOCK, DAMAGED };

struct Found {
    const char *row = nullptr;
    uint64_t number = 0;  // the row's, or the block's that is needed
    bool tombstone = false;
};

class TableReader {
  public:
    // Checks header and footer. False with `damage` set where they are wrong.
    bool open(const char *base, uint64_t bytes, TableDamage &damage) {
        base_ = base;
        if (bytes < 2 * TABLE_PAGE_BYTES)
            return fail(damage, "a header and a footer, at least", 0, 2 * TABLE_PAGE_BYTES, bytes, DamageKind::SIZES);
        std::memcpy(&header_, base, sizeof header_);
        std::memcpy(&footer_, base + bytes - sizeof footer_, sizeof footer_);
        if (std::memcmp(header_.magic, TABLE_MAGIC, 8) != 0)
            return fail(damage, "an sstable's magic", 0, as_number(TABLE_MAGIC), as_number(header_.magic), DamageKind::MAGICS);
        if (page_crc(&header_) != header_.crc) return fail(damage, "the header's checksum", 4092, page_crc(&header_), header_.crc);
        const uint64_t end = bytes - sizeof footer_;
        if (std::memcmp(footer_.magic, TABLE_END_MAGIC, 8) != 0)
            return fail(damage, "a footer's magic", end, as_number(TABLE_END_MAGIC), as_number(footer_.magic), DamageKind::MAGICS);
        if (page_crc(&footer_) != footer_.crc) return fail(damage, "the footer's checksum", end + 4092, page_crc(&footer_), footer_.crc);
        if (footer_.table_number != header_.table_number)
            return fail(damage, "the header's table number", end + 8, header_.table_number, footer_.table_number);
        if (footer_.file_bytes != bytes) return fail(damage, "the file's size", end + 16, bytes, footer_.file_bytes);
        if (header_.version != TABLE_VERSION || header_.byte_order != TABLE_BYTE_ORDER) return true;  // the caller refuses it
        const uint64_t rows = footer_.row_count, words = (header_.key_bytes + 7) / 8;
        if (header_.block_rows == 0 || header_.row_bytes < 24 || words == 0 || words > KEY_WORDS_MAX || rows == 0 ||
            rows > bytes || footer_.bloom_lines > bytes || footer_.block_count != (rows + header_.block_rows - 1) / header_.block_rows)
            return fail(damage, "counts that agree", end + 24, header_.block_rows, footer_.block_count);
        const uint64_t sizes[] = {footer_.block_count * words * 8, footer_.block_count * sizeof(BlockEntry), rows,
                                  footer_.bloom_lines * 64, footer_.tombstone_count != 0 ? (rows + 63) / 64 * 8 : 0};
        for (uint32_t which = 0; which <= SECTION_SCHEMA; ++which) {
            const SectionEntry &section = footer_.sections[which];
            if (section.offset % 64 != 0 || section.offset < TABLE_PAGE_BYTES || section.offset > end ||
                section.bytes > end - section.offset || (which < SECTION_SCHEMA && section.bytes != sizes[which]) ||
                (which == SECTION_BLOOM && footer_.bloom_lines == 0))
                return fail(damage, "a section within the file", end + 96 + 24 * which, sizes[which % 5], section.bytes);
        }
        data_end_ = footer_.sections[SECTION_KEYS].offset;
        const uint64_t data_bytes = rows * header_.row_bytes;
        if (!compressed() && rows > (data_end_ - TABLE_PAGE_BYTES) / header_.row_bytes)
            return fail(damage, "room for all rows", end + 24, data_bytes, data_end_ - TABLE_PAGE_BYTES);
        block_proven_ = std::make_unique<uint8_t[]>(footer_.block_count);
        return true;
    }

    const TableHeader &header() const { return header_; }
    const TableFooter &footer() const { return footer_; }
    bool compressed() const { return header_.compression != COMPRESSION_NONE; }
    uint32_t key_words() const { return (header_.key_bytes + 7) / 8; }
    uint64_t row_count() const { return footer_.row_count; }
    uint64_t block_rows() const { return header_.block_rows; }
    const char *section(TableSection which) const { return base_ + footer_.sections[which].offset; }
    uint64_t section_bytes(TableSection which) const { return footer_.sections[which].bytes; }
    void set_layout(const KeyLayout &layout) { layout_ = std::make_unique<KeyLayout>(layout); }

    // Prove one section's bytes.
    bool prove_section(uint32_t which, TableDamage &damage) const {
        const SectionEntry &section = footer_.sections[which];
        const uint32_t crc = crc32c(0, base_ + section.offset, section.bytes);
        return crc == section.crc || fail(damage, "a section's checksum", section.offset, crc, section.crc);
    }

    // Prove every section; cheap after the first time.
    bool prove_sections(TableDamage &damage) {
        if (load_acquire(sections_proven_) != 0) return true;  // sync PROVEN
        const std::lock_guard hold(proving_);
        if (load_relaxed(sections_proven_) != 0) return true;
        for (uint32_t which = 0; which <= SECTION_SCHEMA; ++which)
            if (!prove_section(which, damage)) return false;
        const auto *blocks = block_entries();
        uint64_t offset = TABLE_PAGE_BYTES;
        for (uint64_t block = 0; block < footer_.block_count; ++block) {
            if (blocks[block].offset != offset || blocks[block].bytes > data_end_ - offset ||
                (!compressed() && blocks[block].bytes != rows_in(block) * header_.row_bytes))
                return fail(damage, "blocks that follow each other",
                            footer_.sections[SECTION_BLOCKS].offset + block * sizeof(BlockEntry), offset, blocks[block].offset);
            offset += blocks[block].bytes;
        }
        const uint32_t words = key_words();
        for (uint64_t block = 0; block < footer_.block_count; block += FENCE_BLOCKS)
            fences_.insert(fences_.end(), block_key(block), block_key(block) + words);
        store_release(sections_proven_, 1u);  // sync PROVEN: fences_ first
        return true;
    }

    // Prove one block's stored bytes.
    bool prove_block(uint64_t block, TableDamage &damage) {
        if (load_relaxed(block_proven_[block]) != 0) return true;
        const BlockEntry &entry = block_entries()[block];
        const uint32_t crc = crc32c(0, base_ + entry.offset, entry.bytes);
        if (crc != entry.crc) return fail(damage, "a block's checksum", entry.offset, crc, entry.crc);
        store_relaxed(block_proven_[block], uint8_t{1});
        return true;
    }

    void prefetch_filter(uint64_t hash) const {
        __builtin_prefetch(bloom_line(bloom(), footer_.bloom_lines, hash));
    }

    bool may_have(const uint64_t *key, uint64_t hash) const {
        return bloom_may_have(bloom(), footer_.bloom_lines, hash) && compare_keys(key, footer_.key_min, key_words()) >= 0 &&
               compare_keys(key, footer_.key_max, key_words()) <= 0;
    }

    // The newest row of a key with a sequence of at most `visible`. Sections must be proven. Where a compressed block is needed,
    // its number is returned; call again with it decompressed, and the search goes on there.
    Lookup find(const uint64_t *key, uint64_t hash, uint64_t visible, Found &found, TableDamage &damage,
                uint64_t given_block = UINT64_MAX, const char *given = nullptr) {
        if (!may_have(key, hash)) return Lookup::ABSENT;
        const uint64_t first_block = given != nullptr ? given_block : block_of(key, visible);
        const uint8_t tag = key_tag(hash);
        for (uint64_t block = first_block; block < footer_.block_count; ++block) {
            if (block > first_block && compare_keys(block_key(block), key, key_words()) > 0) break;
            const uint64_t first = block * header_.block_rows;
            const uint8_t *tags = this->tags(block), *end = tags + rows_in(block);
            const char *rows = nullptr;
            for (const uint8_t *at = tags; at < end; ++at) {
                at = static_cast<const uint8_t *>(std::memchr(at, tag, static_cast<size_t>(end - at)));
                if (at == nullptr) break;
                const uint64_t number = first + static_cast<uint64_t>(at - tags);
                if (rows == nullptr) {
                    if (!compressed()) {
                        if (!prove_block(block, damage)) return Lookup::DAMAGED;
                        rows = base_ + block_entries()[block].offset;
                    } else if (block == given_block) {
                        rows = given;
                    } else {
                        found.number = block;
                        return Lookup::NEEDS_BLOCK;
                    }
                }
                const char *row = rows + (number - first) * header_.row_bytes;
                uint64_t there[KEY_WORDS_MAX];
                layout_->encode(row, there);
                if (!same_key(there, key, key_words()) || row_sequence(row) > visible) continue;
                found = {row, number, is_tombstone(number)};
                return Lookup::FOUND;
            }
        }
        return Lookup::ABSENT;
    }

    // The block in which a search for (key, sequence), in the table's order, must begin: the last that starts at or before it.
    uint64_t block_of(const uint64_t *key, uint64_t sequence) const {
        const uint32_t words = key_words();
        uint64_t low = 0, high = fences_.size() / words;
        while (low < high) {  // fences at or before the key
            const uint64_t middle = (low + high) / 2;
            if (starts_after(middle * FENCE_BLOCKS, &fences_[middle * words], key, sequence)) high = middle;
            else low = middle + 1;
        }
        if (low == 0) return 0;
        uint64_t block = (low - 1) * FENCE_BLOCKS;
        uint64_t end = std::min(block + FENCE_BLOCKS, footer_.block_count);
        while (end - block > 1) {
            const uint64_t middle = (block + end) / 2;
            if (starts_after(middle, block_key(middle), key, sequence)) end = middle;
            else block = middle;
        }
        return block;
    }

    bool is_tombstone(uint64_t number) const {
        if (footer_.tombstone_count == 0) return false;
        uint64_t word;
        std::memcpy(&word, section(SECTION_TOMBSTONES) + number / 64 * 8, 8);
        return (word >> (number % 64)) & 1;
    }

    const uint8_t *tags(uint64_t block) const {
        return reinterpret_cast<const uint8_t *>(section(SECTION_TAGS)) + block * header_.block_rows;
    }
    const BlockEntry *block_entries() const { return reinterpret_cast<const BlockEntry *>(section(SECTION_BLOCKS)); }
    const uint64_t *block_key(uint64_t block) const {
        return reinterpret_cast<const uint64_t *>(section(SECTION_KEYS)) + block * key_words();
    }
    uint64_t rows_in(uint64_t block) const {
        return std::min<uint64_t>(header_.block_rows, footer_.row_count - block * header_.block_rows);
    }
    const char *stored_block(uint64_t block) const { return base_ + block_entries()[block].offset; }
    const char *base() const { return base_; }
    const KeyLayout &layout() const { return *layout_; }

  private:
    static constexpr uint64_t FENCE_BLOCKS = 16;

    static bool fail(TableDamage &damage, const char *what, uint64_t offset, uint64_t expected, uint64_t found,
                     DamageKind kind = DamageKind::NUMBERS) {
        damage = {what, offset, expected, found, kind};
        return false;
    }

    static uint64_t as_number(const char *magic) {
        uint64_t bytes;
        std::memcpy(&bytes, magic, sizeof bytes);
        return bytes;
    }

    const uint64_t *bloom() const { return reinterpret_cast<const uint64_t *>(section(SECTION_BLOOM)); }

    // Whether a block starts behind (key, sequence): sequences fall within a key.
    bool starts_after(uint64_t block, const uint64_t *block_key, const uint64_t *key, uint64_t sequence) const {
        const int order = compare_keys(block_key, key, key_words());
        return order > 0 || (order == 0 && block_entries()[block].first_sequence < sequence);
    }

    const char *base_ = nullptr;
    TableHeader header_;
    TableFooter footer_;
    uint64_t data_end_ = 0;
    std::unique_ptr<KeyLayout> layout_;
    std::unique_ptr<uint8_t[]> block_proven_;
    std::vector<uint64_t> fences_;  // every FENCE_BLOCKS-th block's key, so that a search begins in a nearer cache
    std::mutex proving_;
    uint32_t sections_proven_ = 0;
};

}  // namespace ringmain
