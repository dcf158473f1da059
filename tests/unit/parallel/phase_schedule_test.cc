#include "parallel/phase_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/pipeline_timetable.h"

namespace evenkeel {
namespace {

constexpr int kMostRanks = 6;
constexpr int kMostChunks = 4;
constexpr int64_t kMostMicroBatches = 14;

// "F0 F1 | F0" for two ranks: a column a tick, '-' where a rank has no micro-batch. With several
// chunks "F0a" is in the first, "F0b" in the second.
std::string Text(int ranks, int chunks, int64_t micro_batches) {
  std::string text;
  for (int rank = 0; rank < ranks; ++rank) {
    absl::StrAppend(&text, rank > 0 ? "|" : "");
    for (const PhaseTick& tick : SamePhaseTicks(ranks, chunks, micro_batches)) {
      const TickPass pass = PassAt(tick, ranks, chunks, micro_batches, rank);
      absl::StrAppend(&text, tick.phase == PipelinePhase::kForward ? " F" : " B");
      if (!pass.exists()) {
        text += '-';
      } else {
        absl::StrAppend(&text, pass.micro_batch);
        if (chunks > 1) text += static_cast<char>('a' + pass.chunk);
      }
    }
  }
  return text;
}

template <typename Body>
void ForEachSize(const Body& body) {
  for (int ranks = 1; ranks <= kMostRanks; ++ranks) {
    for (int chunks = 1; chunks <= kMostChunks; ++chunks) {
      for (int64_t micro_batches = 0; micro_batches <= kMostMicroBatches; ++micro_batches) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << chunks << " chunks, "
                                        << micro_batches << " micro-batches");
        body(ranks, chunks, micro_batches);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(PhaseSchedule, ByTable) {
  EXPECT_EQ(Text(1, 1, 3), " F0 B0 F1 B1 F2 B2");
  EXPECT_EQ(Text(2, 1, 1),
            " F0 F- B- B0|"
            " F- F0 B0 B-");
  EXPECT_EQ(Text(2, 1, 3),
            " F0 F1 B- F2 B0 F- B1 B2|"
            " F- F0 B0 F1 B1 F2 B2 B-");
  EXPECT_EQ(Text(3, 1, 2),
            " F0 F1 F- B- F- B- B0 B1|"
            " F- F0 F1 B- F- B0 B1 B-|"
            " F- F- F0 B0 F1 B1 B- B-");
  EXPECT_EQ(Text(3, 1, 4),
            " F0 F1 F2 B- F3 B- F- B0 F- B1 B2 B3|"
            " F- F0 F1 B- F2 B0 F3 B1 F- B2 B3 B-|"
            " F- F- F0 B0 F1 B1 F2 B2 F3 B3 B- B-");
  EXPECT_EQ(Text(3, 1, 0), "||");
  EXPECT_EQ(Text(2, 2, 2),
            " F0a F1a F0b F1b B- F- B0b B1b B0a B1a|"
            " F- F0a F1a F0b B0b F1b B1b B0a B1a B-");
  // The second group's second micro-batch is none.
  EXPECT_EQ(Text(2, 2, 3),
            " F0a F1a F0b F1b B- F2a B0b F- B1b F2b B0a F- B1a B2b B- B2a|"
            " F- F0a F1a F0b B0b F1b B1b F2a B0a F- B1a F2b B2b B- B2a B-");
  EXPECT_EQ(Text(2, 2, 1),
            " F0a F- F0b F- B- B0b B- B0a|"
            " F- F0a F- F0b B0b B- B0a B-");
}

// Numbered in order, as many forward ones as there are stages before the first backward one. A
// multiple of the ranks has chunks m + ranks - 1 of each phase, and any number with one chunk; no
// tick is empty.
TEST(PhaseSchedule, CountsItsTicks) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    std::map<PipelinePhase, int64_t> count;
    int64_t before_backward = 0;
    for (const PhaseTick& tick : SamePhaseTicks(ranks, chunks, micro_batches)) {
      ASSERT_EQ(tick.index, count[tick.phase]++);
      before_backward += count[PipelinePhase::kBackward] == 0 ? 1 : 0;
      bool is_empty = true;
      for (int rank = 0; rank < ranks; ++rank) {
        is_empty = is_empty && !PassAt(tick, ranks, chunks, micro_batches, rank).exists();
      }
      ASSERT_FALSE(is_empty);
    }
    ASSERT_EQ(count[PipelinePhase::kForward], count[PipelinePhase::kBackward]);
    ASSERT_EQ(static_cast<int64_t>(ForwardTicks(ranks, chunks, micro_batches).size()),
              count[PipelinePhase::kForward]);
    if (micro_batches == 0) {
      ASSERT_EQ(count[PipelinePhase::kForward], 0);
      return;
    }
    ASSERT_EQ(before_backward, chunks * ranks);
    if (chunks > 1 && micro_batches % ranks != 0) return;
    ASSERT_EQ(count[PipelinePhase::kForward], chunks * micro_batches + ranks - 1);
  });
}

// Each tick follows from the one before: a rank's passes are those of the rank before it, a tick
// later, and rank 0's those of the last rank in the chunk before.
TEST(PhaseSchedule, ForwardTicksRunEveryPassOnce) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    const std::vector<PhaseTick> ticks = ForwardTicks(ranks, chunks, micro_batches);
    for (int rank = 0; rank < ranks; ++rank) {
      std::set<std::pair<int64_t, int>> passes;
      for (size_t t = 0; t < ticks.size(); ++t) {
        ASSERT_EQ(ticks[t], (PhaseTick{PipelinePhase::kForward, static_cast<int64_t>(t)}));
        const TickPass pass = PassAt(ticks[t], ranks, chunks, micro_batches, rank);
        if (!pass.exists()) continue;
        ASSERT_TRUE(passes.insert({pass.micro_batch, pass.chunk}).second) << "twice";
        if (rank == 0 && pass.chunk == 0) continue;
        ASSERT_GT(t, 0);
        const TickPass before =
            PassAt(ticks[t - 1], ranks, chunks, micro_batches, (rank + ranks - 1) % ranks);
        ASSERT_EQ(before.micro_batch, pass.micro_batch);
        ASSERT_EQ(before.chunk, rank > 0 ? pass.chunk : pass.chunk - 1);
      }
      ASSERT_EQ(static_cast<int64_t>(passes.size()), chunks * micro_batches);
    }
  });
}

// What a pass needs is done in an earlier tick, so that all passes of a tick can run side by side.
TEST(PhaseSchedule, RunsEveryPassOnceAfterWhatItNeeds) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    std::map<std::tuple<PipelinePhase, int64_t, int>, size_t>
        done;  // (.., micro-batch, stage): tick
    const auto ticks = SamePhaseTicks(ranks, chunks, micro_batches);
    const int stages = ranks * chunks;
    for (size_t t = 0; t < ticks.size(); ++t) {
      for (int rank = 0; rank < ranks; ++rank) {
        const TickPass pass = PassAt(ticks[t], ranks, chunks, micro_batches, rank);
        ASSERT_LT(pass.micro_batch, micro_batches);
        if (!pass.exists()) continue;
        const int stage = pass.chunk * ranks + rank;
        ASSERT_TRUE(done.insert({{ticks[t].phase, pass.micro_batch, stage}, t}).second) << "twice";
        const auto is_done = [&](PipelinePhase phase, int at) {
          const auto found = done.find({phase, pass.micro_batch, at});
          return found != done.end() && found->second < t;
        };
        if (ticks[t].phase == PipelinePhase::kForward) {
          ASSERT_TRUE(stage == 0 || is_done(PipelinePhase::kForward, stage - 1));
        } else {
          ASSERT_TRUE(is_done(PipelinePhase::kForward, stage));
          ASSERT_TRUE(stage + 1 == stages || is_done(PipelinePhase::kBackward, stage + 1));
        }
      }
    }
    ASSERT_EQ(done.size(), static_cast<size_t>(2 * stages * micro_batches));
  });
}

TEST(PhaseSchedule, AsAScheduleRunsItsTicksInOrder) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    const PipelineSchedule schedule = SamePhaseSchedule(ranks, chunks, micro_batches);
    ASSERT_EQ(schedule.num_ranks, ranks);
    ASSERT_EQ(schedule.num_chunks, chunks);
    ASSERT_EQ(schedule.num_micro_batches, micro_batches);
    const absl::Status status = CheckSchedule(schedule);
    ASSERT_TRUE(status.ok()) << status;
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<PipelineAction> expected;
      for (const PhaseTick& tick : SamePhaseTicks(ranks, chunks, micro_batches)) {
        const TickPass pass = PassAt(tick, ranks, chunks, micro_batches, rank);
        if (pass.exists()) expected.push_back({tick.phase, pass.micro_batch, pass.chunk});
      }
      ASSERT_EQ(schedule.actions[static_cast<size_t>(rank)], expected) << "rank " << rank;
    }
  });
}

TEST(PhaseSchedule, HoldsUpToTwiceTheActivationsOfOneForwardOneBackward) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    if (chunks > 1) return;
    const PipelineSchedule schedule = SamePhaseSchedule(ranks, chunks, micro_batches);
    for (int rank = 0; rank < ranks; ++rank) {
      ASSERT_EQ(PeakInFlight(schedule, rank),
                std::min<int64_t>(micro_batches, 2 * (ranks - rank) - 1))
          << "rank " << rank;
    }
  });
}

// With several chunks equal phases cost nothing.
TEST(PhaseSchedule, OfSeveralChunksIsInterleavedOneForwardOneBackward) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    if (chunks == 1) return;
    const PipelineSchedule schedule = SamePhaseSchedule(ranks, chunks, micro_batches);
    const PipelineSchedule other = InterleavedOneForwardOneBackward(ranks, chunks, micro_batches);
    for (int rank = 0; rank < ranks; ++rank) {
      ASSERT_EQ(schedule.actions[static_cast<size_t>(rank)],
                other.actions[static_cast<size_t>(rank)])
          << "rank " << rank;
      if (micro_batches % ranks != 0 || micro_batches < 2 * ranks) continue;
      ASSERT_EQ(PeakInFlight(schedule, rank), (chunks + 1) * ranks - 2 * rank - 1);
    }
  });
}

// Equal phases do not cost time: the makespan and the bubble are those of (interleaved) 1F1B.
TEST(PhaseSchedule, TakesAsLongAsOneForwardOneBackward) {
  ForEachSize([](int ranks, int chunks, int64_t micro_batches) {
    if (micro_batches == 0) return;
    for (const double backward : {1.0, 2.0, 2.75}) {
      const std::vector<double> ones(static_cast<size_t>(ranks * chunks), 1.0),
          backwards(static_cast<size_t>(ranks * chunks), backward);
      const Timetable timetable =
          SimulateSchedule(SamePhaseSchedule(ranks, chunks, micro_batches), {ones, backwards, 0});
      const Timetable other = SimulateSchedule(
          InterleavedOneForwardOneBackward(ranks, chunks, micro_batches), {ones, backwards, 0});
      ASSERT_NEAR(timetable.makespan, other.makespan, 1e-9);
      if (chunks > 1 && micro_batches % ranks != 0) continue;
      ASSERT_NEAR(timetable.makespan,
                  static_cast<double>(chunks * micro_batches + ranks - 1) * (1 + backward), 1e-9);
    }
  });
}

}  // namespace
}  // namespace evenkeel
