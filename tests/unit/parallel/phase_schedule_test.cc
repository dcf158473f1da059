#include "parallel/phase_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/pipeline_timetable.h"

namespace evenkeel {
namespace {

constexpr int kMostRanks = 6;
constexpr int64_t kMostMicroBatches = 14;

// "F0 F1 | F0" for two ranks: a column a tick, '-' where a rank has no micro-batch.
std::string Text(int ranks, int64_t micro_batches) {
  std::string text;
  for (int rank = 0; rank < ranks; ++rank) {
    absl::StrAppend(&text, rank > 0 ? "|" : "");
    for (const PhaseTick& tick : SamePhaseTicks(ranks, micro_batches)) {
      const int64_t micro_batch = MicroBatchAt(tick, ranks, micro_batches, rank);
      absl::StrAppend(&text, tick.phase == PipelinePhase::kForward ? " F" : " B");
      if (micro_batch < 0) {
        text += '-';
      } else {
        absl::StrAppend(&text, micro_batch);
      }
    }
  }
  return text;
}

template <typename Body>
void ForEachSize(const Body& body) {
  for (int ranks = 1; ranks <= kMostRanks; ++ranks) {
    for (int64_t micro_batches = 0; micro_batches <= kMostMicroBatches; ++micro_batches) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, " << micro_batches << " micro-batches");
      body(ranks, micro_batches);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(PhaseSchedule, ByTable) {
  EXPECT_EQ(Text(1, 3), " F0 B0 F1 B1 F2 B2");
  EXPECT_EQ(Text(2, 1),
            " F0 F- B- B0|"
            " F- F0 B0 B-");
  EXPECT_EQ(Text(2, 3),
            " F0 F1 B- F2 B0 F- B1 B2|"
            " F- F0 B0 F1 B1 F2 B2 B-");
  EXPECT_EQ(Text(3, 2),
            " F0 F1 F- B- F- B- B0 B1|"
            " F- F0 F1 B- F- B0 B1 B-|"
            " F- F- F0 B0 F1 B1 B- B-");
  EXPECT_EQ(Text(3, 4),
            " F0 F1 F2 B- F3 B- F- B0 F- B1 B2 B3|"
            " F- F0 F1 B- F2 B0 F3 B1 F- B2 B3 B-|"
            " F- F- F0 B0 F1 B1 F2 B2 F3 B3 B- B-");
  EXPECT_EQ(Text(3, 0), "||");
}

// m + ranks - 1 ticks of each phase, numbered in order, and as many forward ones as there are ranks
// before the first backward one.
TEST(PhaseSchedule, CountsItsTicks) {
  ForEachSize([](int ranks, int64_t micro_batches) {
    std::map<PipelinePhase, int64_t> count;
    int64_t before_backward = 0;
    for (const PhaseTick& tick : SamePhaseTicks(ranks, micro_batches)) {
      ASSERT_EQ(tick.index, count[tick.phase]++);
      before_backward += count[PipelinePhase::kBackward] == 0 ? 1 : 0;
    }
    const int64_t expected = micro_batches == 0 ? 0 : micro_batches + ranks - 1;
    ASSERT_EQ(count[PipelinePhase::kForward], expected);
    ASSERT_EQ(count[PipelinePhase::kBackward], expected);
    ASSERT_EQ(before_backward, std::min<int64_t>(expected, ranks));
  });
}

// Each tick follows from the one before: a rank's micro-batches are those of the rank before it, a
// tick later, and all of them.
TEST(PhaseSchedule, ForwardTicksRunEveryPassOnce) {
  ForEachSize([](int ranks, int64_t micro_batches) {
    const std::vector<PhaseTick> ticks = ForwardTicks(ranks, micro_batches);
    ASSERT_EQ(static_cast<int64_t>(ticks.size()),
              micro_batches == 0 ? 0 : micro_batches + ranks - 1);
    for (int rank = 0; rank < ranks; ++rank) {
      int64_t next = 0;
      for (size_t t = 0; t < ticks.size(); ++t) {
        ASSERT_EQ(ticks[t], (PhaseTick{PipelinePhase::kForward, static_cast<int64_t>(t)}));
        const int64_t at = MicroBatchAt(ticks[t], ranks, micro_batches, rank);
        if (at >= 0) {
          ASSERT_EQ(at, next++);
        }
        if (rank == 0) continue;
        const int64_t before =
            t == 0 ? -1 : MicroBatchAt(ticks[t - 1], ranks, micro_batches, rank - 1);
        ASSERT_EQ(at, before);
      }
      ASSERT_EQ(next, micro_batches);
    }
  });
}

// What a pass needs is done in an earlier tick, so that all passes of a tick can run side by side.
TEST(PhaseSchedule, RunsEveryPassOnceAfterWhatItNeeds) {
  ForEachSize([](int ranks, int64_t micro_batches) {
    std::map<std::tuple<PipelinePhase, int64_t, int>, size_t>
        done;  // (.., micro-batch, rank): tick
    const auto ticks = SamePhaseTicks(ranks, micro_batches);
    for (size_t t = 0; t < ticks.size(); ++t) {
      for (int rank = 0; rank < ranks; ++rank) {
        const int64_t micro_batch = MicroBatchAt(ticks[t], ranks, micro_batches, rank);
        ASSERT_GE(micro_batch, -1);
        ASSERT_LT(micro_batch, micro_batches);
        if (micro_batch < 0) continue;
        ASSERT_TRUE(done.insert({{ticks[t].phase, micro_batch, rank}, t}).second) << "twice";
        const auto is_done = [&](PipelinePhase phase, int at) {
          const auto found = done.find({phase, micro_batch, at});
          return found != done.end() && found->second < t;
        };
        if (ticks[t].phase == PipelinePhase::kForward) {
          ASSERT_TRUE(rank == 0 || is_done(PipelinePhase::kForward, rank - 1));
        } else {
          ASSERT_TRUE(is_done(PipelinePhase::kForward, rank));
          ASSERT_TRUE(rank + 1 == ranks || is_done(PipelinePhase::kBackward, rank + 1));
        }
      }
    }
    ASSERT_EQ(done.size(), static_cast<size_t>(2 * ranks * micro_batches));
  });
}

TEST(PhaseSchedule, AsAScheduleRunsItsTicksInOrder) {
  ForEachSize([](int ranks, int64_t micro_batches) {
    const PipelineSchedule schedule = SamePhaseSchedule(ranks, micro_batches);
    ASSERT_EQ(schedule.num_ranks, ranks);
    ASSERT_EQ(schedule.num_chunks, 1);
    ASSERT_EQ(schedule.num_micro_batches, micro_batches);
    const absl::Status status = CheckSchedule(schedule);
    ASSERT_TRUE(status.ok()) << status;
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<PipelineAction> expected;
      for (const PhaseTick& tick : SamePhaseTicks(ranks, micro_batches)) {
        const int64_t micro_batch = MicroBatchAt(tick, ranks, micro_batches, rank);
        if (micro_batch >= 0) expected.push_back({tick.phase, micro_batch, 0});
      }
      ASSERT_EQ(schedule.actions[static_cast<size_t>(rank)], expected) << "rank " << rank;
    }
  });
}

TEST(PhaseSchedule, HoldsUpToTwiceTheActivationsOfOneForwardOneBackward) {
  ForEachSize([](int ranks, int64_t micro_batches) {
    const PipelineSchedule schedule = SamePhaseSchedule(ranks, micro_batches);
    for (int rank = 0; rank < ranks; ++rank) {
      ASSERT_EQ(PeakInFlight(schedule, rank),
                std::min<int64_t>(micro_batches, 2 * (ranks - rank) - 1))
          << "rank " << rank;
    }
  });
}

// Equal phases cost memory, not time: the makespan and the bubble are those of 1F1B.
TEST(PhaseSchedule, TakesAsLongAsOneForwardOneBackward) {
  ForEachSize([](int ranks, int64_t micro_batches) {
    if (micro_batches == 0) return;
    for (const double backward : {1.0, 2.0, 2.75}) {
      const std::vector<double> ones(static_cast<size_t>(ranks), 1.0),
          backwards(static_cast<size_t>(ranks), backward);
      const Timetable timetable =
          SimulateSchedule(SamePhaseSchedule(ranks, micro_batches), {ones, backwards, 0});
      ASSERT_NEAR(timetable.makespan,
                  static_cast<double>(micro_batches + ranks - 1) * (1 + backward), 1e-9);
      const Timetable other =
          SimulateSchedule(OneForwardOneBackward(ranks, micro_batches), {ones, backwards, 0});
      ASSERT_NEAR(timetable.makespan, other.makespan, 1e-9);
    }
  });
}

}  // namespace
}  // namespace evenkeel
