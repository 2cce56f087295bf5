// Which rows of a lane lie where in its topic: what is known of the topic's rows becomes known of the lane's.
//
// Runs stand in the order in which they were drained, in both sequences. There are at most RUNS_MAX: beyond it every second one is
// dropped, and its rows count with the run behind it. So a lane is told late at worst, never early.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

namespace ringmain {

class LaneRuns {
  public:
    static constexpr size_t RUNS_MAX = 4096;
    static constexpr uint32_t KINDS = 4;  // watermarks that follow the topic's, numbered from 0

    // kinds: bit n is set where watermark n exists, and will be asked for.
    explicit LaneRuns(uint32_t kinds) : kinds_(kinds) {}

    void add(uint64_t lane_last, uint64_t topic_last) {
        if (kinds_ == 0) return;
        if (runs_.size() >= RUNS_MAX) drop_every_second();
        runs_.push_back({lane_last, topic_last});
    }

    // Whether something is drained of which watermark `kind` has not come to be known.
    bool waits_for(uint32_t kind) const { return (kinds_ >> kind & 1) != 0 && passed_[kind] < runs_.size(); }

    // The lane's last sequence of which `kind` is known, given the topic's; 0 while there is nothing new.
    uint64_t reached(uint32_t kind, uint64_t topic) {
        uint64_t lane_last = 0;
        while (waits_for(kind) && runs_[passed_[kind]].topic_last <= topic) lane_last = runs_[passed_[kind]++].lane_last;
        if (lane_last != 0) forget();
        return lane_last;
    }

    size_t size() const { return runs_.size(); }

  private:
    struct Run {
        uint64_t lane_last, topic_last;
    };

    void forget() {
        size_t all_passed = runs_.size();
        for (uint32_t kind = 0; kind < KINDS; ++kind)
            if ((kinds_ >> kind & 1) != 0 && passed_[kind] < all_passed) all_passed = passed_[kind];
        runs_.erase(runs_.begin(), runs_.begin() + static_cast<ptrdiff_t>(all_passed));
        for (size_t &passed : passed_) passed = passed < all_passed ? 0 : passed - all_passed;
    }

    void drop_every_second() {  // the newest stays
        std::deque<Run> kept;
        size_t passed[KINDS] = {};
        for (size_t index = 0; index < runs_.size(); ++index) {
            if ((runs_.size() - index) % 2 == 0) continue;
            for (uint32_t kind = 0; kind < KINDS; ++kind)
                if (index < passed_[kind]) passed[kind] = kept.size() + 1;
            kept.push_back(runs_[index]);
        }
        runs_.swap(kept);
        for (uint32_t kind = 0; kind < KINDS; ++kind) passed_[kind] = passed[kind];
    }

    uint32_t kinds_;
    std::deque<Run> runs_;
    size_t passed_[KINDS] = {};
};

}  // namespace ringmain
