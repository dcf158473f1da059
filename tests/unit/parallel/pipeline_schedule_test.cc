#include "parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// "F0 F1 B0 B1", and with several chunks "F0.0 F0.1 B0.1 B0.0": micro-batch and chunk.
std::string Text(const PipelineSchedule& schedule, int rank) {
  std::string text;
  for (const PipelineAction& action : schedule.actions[static_cast<size_t>(rank)]) {
    absl::StrAppend(&text, text.empty() ? "" : " ",
                    action.phase == PipelinePhase::kForward ? "F" : "B", action.micro_batch);
    if (schedule.num_chunks > 1) absl::StrAppend(&text, ".", action.chunk);
  }
  return text;
}

TEST(PipelineSchedule, OneForwardOneBackwardByTable) {
  const PipelineSchedule three = OneForwardOneBackward(3, 4);
  EXPECT_EQ(Text(three, 0), "F0 F1 F2 B0 F3 B1 B2 B3");
  EXPECT_EQ(Text(three, 1), "F0 F1 B0 F2 B1 F3 B2 B3");
  EXPECT_EQ(Text(three, 2), "F0 B0 F1 B1 F2 B2 F3 B3");
  EXPECT_EQ(Text(OneForwardOneBackward(1, 2), 0), "F0 B0 F1 B1");
  EXPECT_EQ(Text(OneForwardOneBackward(4, 1), 0), "F0 B0");
  EXPECT_EQ(Text(OneForwardOneBackward(4, 2), 0), "F0 F1 B0 B1");
  EXPECT_EQ(Text(OneForwardOneBackward(2, 0), 1), "");
}

TEST(PipelineSchedule, InterleavedByTable) {
  const PipelineSchedule two = InterleavedOneForwardOneBackward(2, 2, 4);
  EXPECT_EQ(Text(two, 0),
            "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0");
  EXPECT_EQ(Text(two, 1),
            "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1 B2.0 B3.0");
  // Without the fourth micro-batch.
  const PipelineSchedule three = InterleavedOneForwardOneBackward(2, 2, 3);
  EXPECT_EQ(Text(three, 1), "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 B1.0 F2.1 B2.1 B2.0");
  EXPECT_EQ(Text(InterleavedOneForwardOneBackward(4, 2, 1), 3), "F0.0 F0.1 B0.1 B0.0");
  EXPECT_EQ(Text(InterleavedOneForwardOneBackward(4, 2, 0), 3), "");
  EXPECT_EQ(Text(InterleavedOneForwardOneBackward(3, 1, 4), 1),
            Text(OneForwardOneBackward(3, 4), 1));
}

// Where the paper defines it, action k of a phase is given by k alone.
TEST(PipelineSchedule, InterleavedFollowsTheFormulasOfFullGroups) {
  for (const int p : {2, 3, 4}) {
    for (const int v : {2, 3}) {
      for (const int64_t m : {1 * p, 2 * p, 5 * p}) {
        const PipelineSchedule schedule = InterleavedOneForwardOneBackward(p, v, m);
        for (int rank = 0; rank < p; ++rank) {
          const auto action = [&](PipelinePhase phase, int64_t k) {
            const int chunk = static_cast<int>(k % (p * v) / p);
            return PipelineAction{phase, k / (p * v) * p + k % p,
                                  phase == PipelinePhase::kForward ? chunk : v - 1 - chunk};
          };
          const int64_t total = m * v;
          const int64_t warmup = std::min<int64_t>(total, 2 * (p - rank - 1) + (v - 1) * p);
          std::vector<PipelineAction> expected;
          for (int64_t k = 0; k < warmup; ++k)
            expected.push_back(action(PipelinePhase::kForward, k));
          for (int64_t k = warmup; k < total; ++k) {
            expected.push_back(action(PipelinePhase::kForward, k));
            expected.push_back(action(PipelinePhase::kBackward, k - warmup));
          }
          for (int64_t k = total - warmup; k < total; ++k) {
            expected.push_back(action(PipelinePhase::kBackward, k));
          }
          ASSERT_EQ(schedule.actions[static_cast<size_t>(rank)], expected) << p << v << m << rank;
        }
      }
    }
  }
}

// The messages of one direction from `rank` to the next one, as (stage that needs it, micro-batch):
// in the order sent, and in the order in which they are used.
using Messages = std::vector<std::pair<int, int64_t>>;

Messages Sent(const PipelineSchedule& s, int rank, PipelinePhase phase) {
  const int step = phase == PipelinePhase::kForward ? 1 : -1;
  Messages messages;
  for (const PipelineAction& action : s.actions[static_cast<size_t>(rank)]) {
    const int stage = s.StageOf(rank, action.chunk) + step;
    if (action.phase != phase || stage < 0 || stage >= s.num_stages()) continue;
    messages.emplace_back(stage, action.micro_batch);
  }
  return messages;
}

Messages Used(const PipelineSchedule& s, int rank, PipelinePhase phase) {
  const int end = phase == PipelinePhase::kForward ? 0 : s.num_stages() - 1;
  Messages messages;
  for (const PipelineAction& action : s.actions[static_cast<size_t>(rank)]) {
    const int stage = s.StageOf(rank, action.chunk);
    if (action.phase == phase && stage != end) messages.emplace_back(stage, action.micro_batch);
  }
  return messages;
}

TEST(PipelineSchedule, AnySizesAreExecutableAndMessagesComeInOrder) {
  for (int p = 1; p <= 6; ++p) {
    for (int v = 1; v <= 4; ++v) {
      for (int64_t m = 0; m <= 3 * p + 1; ++m) {
        SCOPED_TRACE(absl::StrCat(p, " ranks, ", v, " chunks, ", m, " micro-batches"));
        const PipelineSchedule s = InterleavedOneForwardOneBackward(p, v, m);
        ASSERT_EQ(s.num_ranks, p);
        ASSERT_EQ(s.num_chunks, v);
        ASSERT_EQ(s.num_micro_batches, m);
        ASSERT_TRUE(CheckSchedule(s).ok()) << CheckSchedule(s);
        for (int rank = 0; rank < p; ++rank) {
          const int64_t bound = v == 1 ? p - rank : 2 * (p - rank - 1) + (v - 1) * p + 1;
          ASSERT_LE(PeakInFlight(s, rank), std::min(bound, m * v));
          if (m % p == 0) {
            ASSERT_EQ(PeakInFlight(s, rank), std::min(bound, m * v));
          }
          const int next = (rank + 1) % p;
          ASSERT_EQ(Sent(s, rank, PipelinePhase::kForward), Used(s, next, PipelinePhase::kForward));
          ASSERT_EQ(Sent(s, next, PipelinePhase::kBackward),
                    Used(s, rank, PipelinePhase::kBackward));
        }
      }
    }
  }
}

TEST(PipelineSchedule, SlotsAreHeldFromForwardToBackward) {
  EXPECT_THAT(ActivationSlots(OneForwardOneBackward(3, 4), 0), ElementsAre(0, 1, 2, 0, 0, 1, 2, 0));
  EXPECT_THAT(ActivationSlots(OneForwardOneBackward(3, 3), 2), ElementsAre(0, 0, 0, 0, 0, 0));
  for (const int p : {1, 3, 4}) {
    for (const int v : {1, 2, 3}) {
      for (const int64_t m : {0, 1, 5, 8, 9}) {
        const PipelineSchedule s = InterleavedOneForwardOneBackward(p, v, m);
        for (int rank = 0; rank < p; ++rank) {
          const auto& actions = s.actions[static_cast<size_t>(rank)];
          const std::vector<int> slots = ActivationSlots(s, rank);
          ASSERT_EQ(slots.size(), actions.size());
          int64_t num_slots = 0;
          for (size_t i = 0; i < actions.size(); ++i) {
            num_slots = std::max<int64_t>(num_slots, slots[i] + 1);
            if (actions[i].phase == PipelinePhase::kBackward) continue;
            // The next use of a slot is by the backward of what lies in it.
            const size_t j = static_cast<size_t>(
                std::find(slots.begin() + static_cast<int64_t>(i) + 1, slots.end(), slots[i]) -
                slots.begin());
            ASSERT_LT(j, actions.size());
            ASSERT_EQ(actions[j], (PipelineAction{PipelinePhase::kBackward, actions[i].micro_batch,
                                                  actions[i].chunk}));
          }
          ASSERT_EQ(num_slots, PeakInFlight(s, rank));
        }
      }
    }
  }
}

TEST(PipelineSchedule, WhatIsWrongIsFound) {
  const PipelineSchedule good = InterleavedOneForwardOneBackward(2, 2, 4);
  ASSERT_TRUE(CheckSchedule(good).ok());
  const auto error = [&good](const auto& change) {
    PipelineSchedule bad = good;
    change(bad.actions);
    return std::string(CheckSchedule(bad).message());
  };
  EXPECT_THAT(error([](auto& a) { a[1].pop_back(); }), HasSubstr("15 actions instead of 16"));
  EXPECT_EQ(error([](auto& a) { a[1][1] = a[1][0]; }),
            "pipeline schedule, rank 1: forward of micro-batch 0, chunk 0 comes twice");
  EXPECT_THAT(error([](auto& a) { a[0][2].chunk = 2; }), HasSubstr("no such thing"));
  EXPECT_THAT(error([](auto& a) { a[0][2].micro_batch = -1; }), HasSubstr("no such thing"));
  EXPECT_THAT(error([](auto& a) { std::swap(a[1][2], a[1][3]); }),
              HasSubstr("backward of micro-batch 0, chunk 1 comes before its forward"));
  EXPECT_EQ(error([](auto& a) { std::swap(a[1][0], a[1][1]); }),
            "pipeline schedule, rank 1: forward of micro-batch 1, chunk 0 comes where rank 0 has "
            "forward of micro-batch 0, chunk 0");
  // Rank 0 wants the gradient of micro-batch 0 before it runs the forward that rank 1 needs first.
  PipelineSchedule stuck = {.num_ranks = 2, .num_micro_batches = 2, .actions = {}};
  const PipelineAction f0 = {PipelinePhase::kForward, 0, 0}, f1 = {PipelinePhase::kForward, 1, 0};
  const PipelineAction b0 = {PipelinePhase::kBackward, 0, 0}, b1 = {PipelinePhase::kBackward, 1, 0};
  stuck.actions = {{f0, b0, f1, b1}, {f0, f1, b0, b1}};
  EXPECT_EQ(CheckSchedule(stuck).message(),
            "pipeline schedule, rank 0: backward of micro-batch 0, chunk 0 waits forever");
  EXPECT_EQ(DependencyOrder(stuck).size(), 2u);
}

}  // namespace
}  // namespace evenkeel
