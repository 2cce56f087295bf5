// Merging sorted sources (memtable runs, sstables) into one stream in the order of keys: what scans and compactions read.
//
// 1. A source gives rows with keys rising and, within a key, sequences falling; backwards, exactly the reverse.
// 2. What comes out of a scan is, for each key, the newest row that is visible, unless that is a tombstone (or every visible
//    row, where all versions are wanted).
// 3. What comes out of a compaction is what any reader may still need: of each key the newest row, and for each open read view
//    the newest row it sees. A tombstone goes when nothing older of its key can be anywhere below.
// 4. A row may come from two sources, a memtable and the table that it was flushed to, or a table to which a repair brought it
//    back: it comes out once.
// 5. Rows are copied out. The sources must stay alive and mapped meanwhile; the caller sees to it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "memtable.hpp"
#include "sstable_reader.hpp"

namespace ringmain {

// Decompress a block into `out` (rows_in(block) * row_bytes); 0, or -1 where it cannot be done.
using LoadBlock = int (*)(void *context, TableReader *table, uint64_t block, char *out);

class MergeSource {
  public:
    virtual ~MergeSource() = default;
    // Go to the next row, the first one at first. False at the end or on damage.
    virtual bool next() = 0;

    const char *row = nullptr;
    uint64_t sequence = 0;
    uint64_t key[KEY_WORDS_MAX] = {};
    bool tombstone = false;
    bool damaged = false;
};

class RunSource final : public MergeSource {
  public:
    RunSource(const Memtable &table, std::shared_ptr<const SortedRun> run, const uint64_t *low, const uint64_t *high, bool reverse)
        : table_(table), run_(std::move(run)), reverse_(reverse) {
        const uint32_t words = table.layout().words();
        const auto position = [&](const uint64_t *bound, bool behind) {  // the first entry not below, or behind, the bound
            return static_cast<size_t>(
                std::partition_point(run_->begin(), run_->end(), [&](const OrderEntry &entry) {
                    uint64_t at[KEY_WORDS_MAX];
                    table_.layout().encode(table_.row(entry.index), at);
                    const int order = compare_keys(at, bound, words);
                    return order < 0 || (behind && order == 0);
                }) - run_->begin());
        };
        first_ = low != nullptr ? position(low, false) : 0;
        end_ = high != nullptr ? position(high, true) : run_->size();
    }

    bool next() override {
        if (first_ >= end_) return false;
        const OrderEntry &entry = (*run_)[reverse_ ? --end_ : first_++];
        if (!reverse_ && first_ + 8 < end_) __builtin_prefetch(table_.row((*run_)[first_ + 8].index));
        if (reverse_ && end_ > first_ + 8) __builtin_prefetch(table_.row((*run_)[end_ - 8].index));
        row = table_.row(entry.index);
        sequence = row_sequence(row);
        tombstone = table_.is_tombstone(entry.index);
        if (table_.layout().words() <= 2) key[0] = entry.key[0], key[1] = entry.key[1];
        else table_.layout().encode(row, key);
        return true;
    }

  private:
    const Memtable &table_;
    const std::shared_ptr<const SortedRun> run_;
    const bool reverse_;
    size_t first_, end_;
};

class TableSource final : public MergeSource {
  public:
    // Sections must be proven.
    TableSource(TableReader &table, const uint64_t *low, const uint64_t *high, bool reverse, LoadBlock load, void *context)
        : table_(table), load_(load), context_(context), reverse_(reverse) {
        first_ = low != nullptr ? position(low, false) : 0;
        end_ = high != nullptr && !damaged ? position(high, true) : table.row_count();
    }

    bool next() override {
        if (damaged || first_ >= end_) return false;
        const uint64_t number = reverse_ ? end_ - 1 : first_;
        if (!enter(number / table_.block_rows())) return false;
        if (reverse_) --end_; else ++first_;
        row = row_at(number);
        sequence = row_sequence(row);
        tombstone = table_.is_tombstone(number);
        table_.layout().encode(row, key);
        return true;
    }

    uint64_t first() const { return first_; }
    uint64_t end() const { return std::max(first_, end_); }

    TableDamage damage;

  private:
    // The number of the first row not below (or behind) the bound.
    uint64_t position(const uint64_t *bound, bool behind) {
        const uint64_t sequence = behind ? 0 : UINT64_MAX;
        uint64_t block = table_.block_of(bound, sequence);
        if (!enter(block)) return 0;
        uint64_t low = 0, high = table_.rows_in(block);
        while (low < high) {
            const uint64_t middle = (low + high) / 2;
            uint64_t at[KEY_WORDS_MAX];
            table_.layout().encode(rows_ + middle * table_.header().row_bytes, at);
            const int order = compare_keys(at, bound, table_.key_words());
            if (order < 0 || (behind && order == 0)) low = middle + 1;
            else high = middle;
        }
        return block * table_.block_rows() + low;
    }

    const char *row_at(uint64_t number) const { return rows_ + (number % table_.block_rows()) * table_.header().row_bytes; }

    bool enter(uint64_t block) {
        if (block == block_) return true;
        if (!table_.prove_block(block, damage)) {
            damaged = true;
            return false;
        }
        if (!table_.compressed()) {
            rows_ = table_.stored_block(block);
        } else {
            buffer_.resize(table_.rows_in(block) * table_.header().row_bytes);
            if (load_ == nullptr || load_(context_, &table_, block, buffer_.data()) != 0) {
                damage = {"a block that decompresses", table_.block_entries()[block].offset, 0, 0};
                damaged = true;
                return false;
            }
            rows_ = buffer_.data();
        }
        block_ = block;
        return true;
    }

    TableReader &table_;
    LoadBlock load_;
    void *context_;
    const bool reverse_;
    uint64_t first_ = 0, end_ = 0, block_ = UINT64_MAX;
    const char *rows_ = nullptr;
    std::vector<char> buffer_;
};

class Merge {
  public:
    Merge(uint32_t row_bytes, uint32_t key_words, bool reverse) : row_bytes_(row_bytes), words_(key_words), reverse_(reverse) {}

    void add(std::unique_ptr<MergeSource> source) { sources_.push_back(std::move(source)); }

    // A scan: what is visible at a sequence, one row a key or all versions.
    void begin_scan(uint64_t visible, bool all_versions) {
        visible_ = visible;
        all_versions_ = all_versions;
        begin();
    }

    // A compaction: forward only. views: the sequences of open read views, falling. bottom: nothing older lies anywhere below.
    void begin_compaction(std::vector<uint64_t> views, bool all_versions, bool bottom) {
        compacting_ = true;
        views_ = std::move(views);
        all_versions_ = all_versions;
        bottom_ = bottom;
        begin();
    }

    // Copy out up to `count` rows (at least 2), and for each whether it is a tombstone (`flags` may be null in a scan). None are
    // left, or a source is damaged, once it copies none.
    uint64_t fill(char *rows, uint8_t *flags, uint64_t count) {
        rows_ = rows, flags_ = flags, filled_ = 0;
        if (compacting_) fill_compaction(count);
        else if (reverse_ && !all_versions_) fill_backwards(count);
        else fill_scan(count);
        return filled_;
    }

    // Whether the next row has the key of the last one copied out: no table may end between them.
    bool within_key() const {
        return !heap_.empty() && filled_any_ && same_key(top().key, last_emitted_, words_);
    }

    const MergeSource *damaged() const { return damaged_; }
    uint64_t read_count() const { return read_count_; }

  private:
    const MergeSource &top() const { return *heap_.front(); }

    // Heap order: whether `one` comes after `other`.
    bool after(const MergeSource *one, const MergeSource *other) const {
        int order = compare_keys(one->key, other->key, words_);
        if (order == 0) order = one->sequence > other->sequence ? -1 : one->sequence < other->sequence;
        return reverse_ ? order < 0 : order > 0;
    }

    void begin() {
        for (auto &source : sources_) {
            if (source->next()) heap_.push_back(source.get());
            else if (source->damaged) damaged_ = source.get();
        }
        std::make_heap(heap_.begin(), heap_.end(), [this](const MergeSource *a, const MergeSource *b) { return after(a, b); });
    }

    // Step the topmost source and put it where it belongs.
    void advance() {
        ++read_count_;
        MergeSource *source = heap_.front();
        if (!source->next()) {
            if (source->damaged) damaged_ = source;
            heap_.front() = heap_.back();
            heap_.pop_back();
            if (heap_.empty()) return;
            source = heap_.front();
        }
        const size_t size = heap_.size();
        size_t hole = 0;
        for (size_t child = 1; child < size; child = 2 * hole + 1) {
            if (child + 1 < size && after(heap_[child], heap_[child + 1])) ++child;
            if (!after(source, heap_[child])) break;
            heap_[hole] = heap_[child];
            hole = child;
        }
        heap_[hole] = source;
    }

    bool more() const { return !heap_.empty() && damaged_ == nullptr; }

    void emit(const char *row, bool tombstone, const uint64_t *key) {
        std::memcpy(rows_ + filled_ * row_bytes_, row, row_bytes_);
        if (flags_ != nullptr) flags_[filled_] = tombstone;
        ++filled_;
        std::memcpy(last_emitted_, key, words_ * sizeof(uint64_t));
        filled_any_ = true;
    }

    void fill_scan(uint64_t count) {
        while (filled_ < count && more()) {
            const MergeSource &at = top();
            const bool same = has_group_ && same_key(at.key, group_, words_);
            if (at.sequence <= visible_ && (!same || (all_versions_ && at.sequence != newer_))) {
                newer_ = at.sequence;
                std::memcpy(group_, at.key, words_ * sizeof(uint64_t));
                has_group_ = true;
                if (!at.tombstone || (all_versions_ && flags_ != nullptr)) emit(at.row, at.tombstone, at.key);
            }
            advance();
        }
    }

    // Within a key the sequences rise: the last visible one counts, and is held until the key changes.
    void fill_backwards(uint64_t count) {
        while (filled_ < count) {
            const bool ends = !more();
            if (has_group_ && (ends || !same_key(top().key, group_, words_))) {
                has_group_ = false;
                if (!held_tombstone_) emit(held_.data(), false, group_);
                continue;
            }
            if (ends) return;
            const MergeSource &at = top();
            if (at.sequence <= visible_) {
                std::memcpy(group_, at.key, words_ * sizeof(uint64_t));
                has_group_ = true;
                held_.assign(at.row, at.row + row_bytes_);
                held_tombstone_ = at.tombstone;
            }
            advance();
        }
    }

    void fill_compaction(uint64_t count) {
        while (filled_ + 2 <= count && more()) {
            const MergeSource &at = top();
            const bool same = has_group_ && same_key(at.key, group_, words_);
            if (!same) {
                std::memcpy(group_, at.key, words_ * sizeof(uint64_t));
                has_group_ = true;
                held_.clear();
            }
            if (!same || (all_versions_ ? at.sequence != newer_ : wanted(at.sequence, newer_))) {
                if (at.tombstone && bottom_ && !all_versions_) {
                    held_.assign(at.row, at.row + row_bytes_);  // of several in a row the oldest says all
                } else {
                    if (!held_.empty()) emit(held_.data(), true, at.key);  // something older stays: so must what deletes it
                    held_.clear();
                    emit(at.row, at.tombstone, at.key);
                }
            }
            newer_ = at.sequence;
            advance();
        }
    }

    // Whether a read view sees a row whose next newer version has the sequence `newer`.
    bool wanted(uint64_t sequence, uint64_t newer) const {
        const auto view = std::partition_point(views_.begin(), views_.end(), [&](uint64_t at) { return at >= newer; });
        return view != views_.end() && *view >= sequence;
    }

    const uint32_t row_bytes_, words_;
    const bool reverse_;
    std::vector<std::unique_ptr<MergeSource>> sources_;
    std::vector<MergeSource *> heap_;  // by the row each stands at, the next to come out in front
    const MergeSource *damaged_ = nullptr;
    uint64_t visible_ = UINT64_MAX;
    std::vector<uint64_t> views_;
    bool all_versions_ = false, compacting_ = false, bottom_ = false;

    uint64_t group_[KEY_WORDS_MAX] = {}, last_emitted_[KEY_WORDS_MAX] = {};
    bool has_group_ = false, filled_any_ = false, held_tombstone_ = false;
    uint64_t newer_ = 0;
    std::vector<char> held_;

    char *rows_ = nullptr;
    uint8_t *flags_ = nullptr;
    uint64_t filled_ = 0, read_count_ = 0;
};

}  // namespace ringmain
