// Memory that runs out while a memtable is brought into order: whichever allocation fails, no row is missing the next time.
//
//   memtable_memory
//
// Rows come in turns, each a run of its own, until joining the last run joins all of them. Then every single allocation of
// `order`, and of `whole_order`, fails once, each in a memtable of its own. Chance has no part in it.
// Exit code 1 with a line beginning with FAILED otherwise.
#include <new>
#include <vector>

#include "memtable.hpp"
#include "stress.hpp"

using namespace stress;

namespace {

uint64_t left = UINT64_MAX;  // allocations until one fails

}  // namespace

// noinline: seen from inside, the two would look like no pair.
[[gnu::noinline]] void *operator new(size_t bytes) {
    if (left == 0) throw std::bad_alloc();
    if (left != UINT64_MAX) --left;
    if (void *memory = std::malloc(bytes)) return memory;
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void *memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void *memory, size_t) noexcept { std::free(memory); }

namespace {

constexpr uint32_t ROW_BYTES = 24;
constexpr uint64_t TURNS[] = {80, 40, 20, 10};  // each at most half of the one before: nothing is joined yet
constexpr uint64_t LAST_TURN = 40, LATER = 5;   // joins four times
const KeyLayout LAYOUT({{16, 8, KEY_UNSIGNED}});

struct Counts {
    uint64_t failed = 0, whole = 0;
};

void insert(Memtable &memtable, uint64_t count) {
    for (; count != 0; --count) {
        const uint64_t sequence = memtable.count() + 1, key = sequence * 0x9e3779b97f4a7c15 >> 58;
        char row[ROW_BYTES] = {};
        std::memcpy(row, &sequence, 8);
        std::memcpy(row + 16, &key, 8);
        memtable.insert(row, 1, false);
    }
}

void check_run(const Memtable &memtable, const SortedRun &run, std::vector<bool> &seen) {
    for (size_t at = 0; at < run.size(); ++at) {
        if (run[at].index >= seen.size() || seen[run[at].index]) fail("row %u is in two runs, or is none", run[at].index);
        if (at > 0 && !memtable.before(run[at - 1], run[at])) fail("row %u is out of order", run[at].index);
        seen[run[at].index] = true;
    }
}

// Every row is in one run.
void check(Memtable &memtable, const char *when, uint64_t allocation) {
    std::vector<bool> seen(memtable.count());
    for (const auto &run : memtable.order(memtable.count())) check_run(memtable, *run, seen);
    for (size_t row = 0; row < seen.size(); ++row)
        if (!seen[row]) fail("%s: allocation %lu failed, and row %zu is missing since", when, allocation, row);
}

// Whether that allocation was made, and so failed.
bool fail_one(uint64_t allocation, bool whole, Counts &counts) {
    Memtable memtable(LAYOUT, ROW_BYTES, uint64_t{1} << 16, std::make_shared<MemoryPool>(0));
    for (const uint64_t count : TURNS) {
        insert(memtable, count);
        memtable.order(memtable.count());
    }
    insert(memtable, LAST_TURN);
    bool failed = false;
    left = allocation;
    try {
        if (whole) memtable.whole_order();
        else memtable.order(memtable.count());
    } catch (const std::bad_alloc &) {
        failed = true;
    }
    left = UINT64_MAX;
    check(memtable, whole ? "whole_order" : "order", allocation);
    insert(memtable, LATER);
    check(memtable, "later", allocation);
    std::vector<bool> seen(memtable.count());
    const auto run = memtable.whole_order();
    check_run(memtable, *run, seen);
    if (run->size() != memtable.count()) fail("allocation %lu failed, and the whole order lacks rows since", allocation);
    ++(failed ? counts.failed : counts.whole);
    return failed;
}

}  // namespace

int main() {
    Counts counts;
    for (const bool whole : {false, true})
        for (uint64_t allocation = 0; fail_one(allocation, whole, counts); ++allocation) {}
    std::printf("{\"failed\": %lu, \"whole\": %lu}\n", counts.failed, counts.whole);
}
