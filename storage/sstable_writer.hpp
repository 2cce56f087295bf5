// Writing an sstable: rows in the order of keys go in, blocks go out; the index, filter and footer follow at the end.
//
// 1. Rows come with keys rising and, within a key, sequences falling. The caller keeps to it; `add` refuses anything else.
// 2. The first failed write or sync is final: every later call returns the same errno, and the file must be removed.
// 3. The file is a table only once its footer is written: a reader takes nothing else for one.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "memtable.hpp"
#include "sstable_format.hpp"

namespace ringmain {

// Appends the stored form of a block to `out`; returns 0, or an errno.
using CompressBlock = int (*)(void *context, const char *block, size_t bytes, std::string &out);

inline constexpr int TABLE_OUT_OF_ORDER = -1;  // beside errnos

class TableWriter {
  public:
    static constexpr size_t WRITE_BYTES = 1 << 20;

    TableWriter(int fd, const KeyLayout &layout, const TableHeader &header, CompressBlock compress, void *context)
        : fd_(fd), layout_(layout), header_(header), compress_(compress), context_(context) {
        block_bytes_ = size_t{header_.block_rows} * header_.row_bytes;
        pending_.reserve(std::max<size_t>(1, WRITE_BYTES / block_bytes_) * block_bytes_);
        std::memset(&footer_, 0, sizeof footer_);
        footer_.sequence_min = UINT64_MAX;
        footer_.timestamp_min_ns = INT64_MAX;
        footer_.timestamp_max_ns = INT64_MIN;
        header_.crc = page_crc(&header_);
        error_ = write_at(&header_, sizeof header_);
    }

    // tombstones: a byte for each row, or null where none is one. 0, an errno, or TABLE_OUT_OF_ORDER.
    int add(const char *rows, const uint8_t *tombstones, uint64_t count) {
        for (uint64_t at = 0; at < count && error_ == 0; ++at) {
            const char *row = rows + at * header_.row_bytes;
            if (const int refused = index_row(row, tombstones != nullptr && tombstones[at] != 0); refused != 0) return refused;
            pending_.insert(pending_.end(), row, row + header_.row_bytes);
            if (pending_.size() == pending_.capacity()) store_pending();
        }
        return error_;
    }

    // Write what is left, and sync. Then the file is a table. 0 or an errno.
    int finish() {
        if (error_ == 0) store_pending();
        if (error_ != 0) return error_;
        std::vector<uint64_t> filter(8 * bloom_lines_for(hashes_.size()));
        footer_.bloom_lines = filter.size() / 8;
        for (const uint64_t hash : hashes_) bloom_add(filter.data(), footer_.bloom_lines, hash);
        if (footer_.tombstone_count != 0) tombstones_.resize((footer_.row_count + 63) / 64);
        write_section(SECTION_KEYS, keys_.data(), keys_.size() * sizeof(uint64_t));
        write_section(SECTION_BLOCKS, blocks_.data(), blocks_.size() * sizeof(BlockEntry));
        write_section(SECTION_TAGS, tags_.data(), tags_.size());
        write_section(SECTION_BLOOM, filter.data(), filter.size() * sizeof(uint64_t));
        write_section(SECTION_TOMBSTONES, tombstones_.data(), tombstones_.size() * sizeof(uint64_t));
        write_section(SECTION_SCHEMA, schema_.data(), schema_.size());
        pad(TABLE_PAGE_BYTES);
        std::memcpy(footer_.magic, TABLE_END_MAGIC, 8);
        footer_.table_number = header_.table_number;
        footer_.block_count = blocks_.size();
        footer_.file_bytes = offset_ + sizeof footer_;
        std::memcpy(footer_.key_max, last_key_, sizeof footer_.key_max);
        footer_.crc = page_crc(&footer_);
        if (error_ == 0) error_ = write_at(&footer_, sizeof footer_);
        if (error_ == 0 && fdatasync(fd_) != 0) error_ = errno;
        return error_;
    }

    void set_schema(const std::string &json) { schema_ = json; }
    uint64_t row_count() const { return footer_.row_count; }
    uint64_t data_bytes() const { return offset_ + pending_.size(); }
    int error() const { return error_; }

  private:
    int index_row(const char *row, bool tombstone) {
        uint64_t key[KEY_WORDS_MAX] = {};
        layout_.encode(row, key);
        const uint64_t sequence = row_sequence(row), number = footer_.row_count;
        int64_t timestamp_ns;
        std::memcpy(&timestamp_ns, row + 8, 8);
        const int order = number == 0 ? -1 : compare_keys(last_key_, key, layout_.words());
        if (order > 0 || (order == 0 && sequence >= last_sequence_)) return TABLE_OUT_OF_ORDER;
        const uint64_t hash = hash_key(key, layout_.words());
        if (number == 0) std::memcpy(footer_.key_min, key, sizeof key);
        if (order == 0) ++footer_.shadowed_count; else hashes_.push_back(hash);
        if (number % header_.block_rows == 0) {
            keys_.insert(keys_.end(), key, key + layout_.words());
            blocks_.push_back({0, sequence, 0, 0});
        }
        tags_.push_back(key_tag(hash));
        if (tombstone) {
            tombstones_.resize(number / 64 + 1);
            tombstones_[number / 64] |= 1ull << (number % 64);
            ++footer_.tombstone_count;
        }
        footer_.sequence_min = std::min(footer_.sequence_min, sequence);
        footer_.sequence_max = std::max(footer_.sequence_max, sequence);
        footer_.timestamp_min_ns = std::min(footer_.timestamp_min_ns, timestamp_ns);
        footer_.timestamp_max_ns = std::max(footer_.timestamp_max_ns, timestamp_ns);
        std::memcpy(last_key_, key, sizeof key);
        last_sequence_ = sequence;
        ++footer_.row_count;
        return 0;
    }

    void store_pending() {
        std::string stored;
        const char *from = pending_.data();
        size_t bytes = pending_.size();
        for (size_t at = 0; at < pending_.size(); at += block_bytes_, ++stored_blocks_) {
            const size_t length = std::min(block_bytes_, pending_.size() - at);
            BlockEntry &block = blocks_[stored_blocks_];
            if (compress_ == nullptr) {
                block.offset = offset_ + at;
                block.bytes = static_cast<uint32_t>(length);
                block.crc = crc32c(0, pending_.data() + at, length);
            } else {
                const size_t before = stored.size();
                if (error_ = compress_(context_, pending_.data() + at, length, stored); error_ != 0) return;
                block.offset = offset_ + before;
                block.bytes = static_cast<uint32_t>(stored.size() - before);
                block.crc = crc32c(0, stored.data() + before, block.bytes);
            }
        }
        if (compress_ != nullptr) from = stored.data(), bytes = stored.size();
        error_ = write_at(from, bytes);
        pending_.clear();
    }

    void write_section(TableSection section, const void *data, size_t bytes) {
        pad(64);
        footer_.sections[section] = {offset_, bytes, crc32c(0, data, bytes), 0};
        if (error_ == 0) error_ = write_at(data, bytes);
    }

    void pad(size_t multiple) {
        static const char zeros[TABLE_PAGE_BYTES] = {};
        if (error_ == 0) error_ = write_at(zeros, (multiple - offset_ % multiple) % multiple);
    }

    int write_at(const void *data, size_t bytes) {
        const char *from = static_cast<const char *>(data);
        while (bytes > 0) {
            const ssize_t written = pwrite(fd_, from, bytes, static_cast<off_t>(offset_));
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) return written < 0 ? errno : EIO;
            from += written;
            bytes -= static_cast<size_t>(written);
            offset_ += static_cast<uint64_t>(written);
        }
        return 0;
    }

    const int fd_;
    const KeyLayout layout_;
    TableHeader header_;
    CompressBlock compress_;
    void *context_;
    std::string schema_;
    size_t block_bytes_;
    std::vector<char> pending_;  // whole blocks, but for the last
    std::vector<uint64_t> keys_, hashes_, tombstones_;
    std::vector<BlockEntry> blocks_;
    std::vector<uint8_t> tags_;
    TableFooter footer_;
    uint64_t last_key_[KEY_WORDS_MAX] = {};
    uint64_t last_sequence_ = 0, offset_ = 0;
    size_t stored_blocks_ = 0;
    int error_ = 0;
};

}  // namespace ringmain
