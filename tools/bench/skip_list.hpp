// A plain skip list over rows, what the memtable is measured against: LevelDB's (db/skiplist.h), with the row in the node.
//
// Keys are compared as bytes; of rows with the same key the newer comes first. One thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace ringmain {

class SkipList {
  public:
    SkipList(uint32_t row_bytes, uint32_t key_offset, uint32_t key_bytes)
        : row_bytes_(row_bytes), key_offset_(key_offset), key_bytes_(key_bytes), head_(make_node(HEIGHT_MAX)) {}

    void insert(const char *row) {
        Node **before[HEIGHT_MAX];
        Node *at = head_;
        for (int level = height_ - 1;; --level) {
            while (at->next[level] != nullptr && is_below(at->next[level], row)) at = at->next[level];
            before[level] = &at->next[level];
            if (level == 0) break;
        }
        const int height = random_height();
        for (; height_ < height; ++height_) before[height_] = &head_->next[height_];
        Node *node = make_node(height);
        node->row = reinterpret_cast<char *>(&node->next[height]);
        std::memcpy(node->row, row, row_bytes_);
        for (int level = 0; level < height; ++level) {
            node->next[level] = *before[level];
            *before[level] = node;
        }
        ++count_;
    }

    uint64_t count() const { return count_; }

    // Copy out all rows in the order of keys.
    void copy_rows(char *out) const {
        for (const Node *at = head_->next[0]; at != nullptr; at = at->next[0], out += row_bytes_)
            std::memcpy(out, at->row, row_bytes_);
    }

  private:
    static constexpr int HEIGHT_MAX = 12;
    static constexpr size_t ARENA_BYTES = 4 << 20;

    struct Node {
        char *row;  // behind the links
        Node *next[1];
    };

    bool is_below(const Node *node, const char *row) const {
        return std::memcmp(node->row + key_offset_, row + key_offset_, key_bytes_) < 0;
    }

    Node *make_node(int height) {
        const size_t bytes = (sizeof(Node) + static_cast<size_t>(height - 1) * sizeof(Node *) + row_bytes_ + 7) & ~size_t{7};
        if (left_ < bytes) {
            left_ = ARENA_BYTES + bytes;
            arenas_.push_back(std::make_unique<char[]>(left_));
            free_ = arenas_.back().get();
        }
        auto *node = reinterpret_cast<Node *>(free_);
        free_ += bytes;
        left_ -= bytes;
        return node;
    }

    // One in four is a level higher.
    int random_height() {
        int height = 1;
        random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
        for (uint64_t bits = random_; height < HEIGHT_MAX && (bits & 3) == 0; bits >>= 2) ++height;
        return height;
    }

    const uint32_t row_bytes_, key_offset_, key_bytes_;
    std::vector<std::unique_ptr<char[]>> arenas_;
    char *free_ = nullptr;
    size_t left_ = 0;
    Node *const head_;
    int height_ = 1;
    uint64_t count_ = 0, random_ = 0x9E3779B97F4A7C15ull;
};

}  // namespace ringmain
