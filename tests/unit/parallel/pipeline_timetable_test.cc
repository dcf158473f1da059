#include "parallel/pipeline_timetable.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

StageCosts EqualCosts(int stages, double forward, double backward) {
  return {.forward = std::vector<double>(static_cast<size_t>(stages), forward),
          .backward = std::vector<double>(static_cast<size_t>(stages), backward)};
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) ++count;
  return count;
}

// (p - 1) / (m + p - 1), whatever a backward pass costs.
TEST(PipelineTimetable, BubbleOfOneForwardOneBackward) {
  for (int p = 1; p <= 6; ++p) {
    for (int64_t m = 1; m <= 17; ++m) {
      for (const double backward : {1.0, 2.0, 2.75}) {
        const Timetable t =
            SimulateSchedule(OneForwardOneBackward(p, m), EqualCosts(p, 1, backward));
        const double bubble = (p - 1.0) / (static_cast<double>(m) + p - 1);
        ASSERT_NEAR(t.makespan, (static_cast<double>(m) + p - 1) * (1 + backward), 1e-9);
        ASSERT_NEAR(t.total_idle_share, bubble, 1e-12) << p << " ranks, " << m;
        for (const double share : t.idle_share) ASSERT_NEAR(share, bubble, 1e-12);
        for (const double busy : t.busy) {
          ASSERT_NEAR(busy, static_cast<double>(m) * (1 + backward), 1e-9);
        }
      }
    }
  }
}

// (p - 1) / v in place of p - 1, where m is a multiple of p.
TEST(PipelineTimetable, BubbleOfTheInterleavedSchedule) {
  for (int p = 1; p <= 5; ++p) {
    for (int v = 2; v <= 4; ++v) {
      for (int64_t m = p; m <= 4 * p; m += p) {
        const Timetable t = SimulateSchedule(InterleavedOneForwardOneBackward(p, v, m),
                                             EqualCosts(p * v, 1.0 / v, 2.0 / v));
        const double wait = (p - 1.0) / v;
        ASSERT_NEAR(t.total_idle_share, wait / (static_cast<double>(m) + wait), 1e-12)
            << p << " ranks, " << v << " chunks, " << m << " micro-batches";
      }
    }
  }
}

// A step never gets shorter with a micro-batch more, so part of a group is no worse than a full
// one.
TEST(PipelineTimetable, PartialGroupsTakeNoLongerThanFullOnes) {
  for (int p = 2; p <= 5; ++p) {
    for (int v = 2; v <= 3; ++v) {
      double before = 0;
      for (int64_t m = 1; m <= 3 * p; ++m) {
        const Timetable t =
            SimulateSchedule(InterleavedOneForwardOneBackward(p, v, m), EqualCosts(p * v, 1, 2));
        ASSERT_GE(t.makespan, before - 1e-9) << p << " " << v << " " << m;
        before = t.makespan;
      }
    }
  }
}

TEST(PipelineTimetable, TimesByHand) {
  // Stage 1 is the slow one, and a message takes 0.5.
  const StageCosts costs = {.forward = {1, 3}, .backward = {2, 4}, .message = 0.5};
  const Timetable t = SimulateSchedule(OneForwardOneBackward(2, 2), costs);
  const auto times = [&t](size_t rank) {
    std::string text;
    for (const TimedAction& timed : t.actions[rank]) {
      absl::StrAppend(&text, timed.start, "-", timed.end, " ");
    }
    return text;
  };
  EXPECT_EQ(times(0), "0-1 1-2 9-11 16-18 ");
  EXPECT_EQ(times(1), "1.5-4.5 4.5-8.5 8.5-11.5 11.5-15.5 ");
  EXPECT_EQ(t.makespan, 18);
  EXPECT_EQ(t.busy, (std::vector<double>{6, 14}));
  EXPECT_DOUBLE_EQ(t.idle_share[1], 4.0 / 18);
  EXPECT_DOUBLE_EQ(t.total_idle_share, 16.0 / 36);
  // A rank sends itself nothing.
  const Timetable alone = SimulateSchedule(InterleavedOneForwardOneBackward(1, 2, 1), costs);
  EXPECT_EQ(alone.makespan, 10);
  EXPECT_EQ(alone.total_idle_share, 0);
}

TEST(PipelineTimetable, NothingTakesNoTime) {
  const Timetable t = SimulateSchedule(OneForwardOneBackward(3, 0), EqualCosts(3, 1, 2));
  EXPECT_EQ(t.makespan, 0);
  EXPECT_EQ(t.total_idle_share, 0);
  EXPECT_THAT(RenderTimetable(t, 60), HasSubstr("rank 2 ....."));
  EXPECT_THAT(DrawTimetable(t), Not(HasSubstr("nan")));
}

TEST(PipelineTimetable, TextByHand) {
  // 12 units of time in 48 columns: 4 columns a unit.
  const Timetable t = SimulateSchedule(OneForwardOneBackward(2, 3), EqualCosts(2, 1, 2));
  ASSERT_EQ(t.makespan, 12);
  EXPECT_EQ(RenderTimetable(t, 62),
            "rank 0 00001111........aaaaaaaa2222bbbbbbbb....cccccccc  25.0%\n"
            "rank 1 ....0000aaaaaaaa1111bbbbbbbb2222cccccccc........  25.0%\n"
            "12s, 25.0% idle; 0-9 forward, a-j backward, . idle\n");
}

TEST(PipelineTimetable, TextKeepsToItsWidth) {
  for (const int width : {60, 80, 120}) {
    const Timetable t =
        SimulateSchedule(InterleavedOneForwardOneBackward(12, 2, 31), EqualCosts(24, 1e-3, 2e-3));
    std::istringstream text(RenderTimetable(t, width));
    std::string line;
    for (int rank = 0; rank < 12; ++rank) {
      ASSERT_TRUE(std::getline(text, line));
      EXPECT_EQ(line.size(), static_cast<size_t>(width));
    }
    ASSERT_TRUE(std::getline(text, line));
    EXPECT_LE(line.size(), static_cast<size_t>(width));
    EXPECT_FALSE(std::getline(text, line));
  }
}

TEST(PipelineTimetable, DrawingHasABoxForEveryAction) {
  const Timetable t = SimulateSchedule(OneForwardOneBackward(4, 6), EqualCosts(4, 0.010, 0.020));
  const std::string svg = DrawTimetable(t);
  EXPECT_EQ(svg, DrawTimetable(t));
  // A legend entry more than actions.
  EXPECT_EQ(Count(svg, "fill=\"#2563c9\""), 4 * 6 + 1);
  EXPECT_EQ(Count(svg, "fill=\"#d9630f\""), 4 * 6 + 1);
  EXPECT_EQ(Count(svg, ">5</text>"), 2 * 4);
  EXPECT_THAT(svg, HasSubstr("rank 3"));
  EXPECT_THAT(svg, HasSubstr("time (ms)"));
  EXPECT_THAT(svg, HasSubstr("4 ranks, 270 ms, 33.3% idle"));
  EXPECT_EQ(Count(svg, "<svg"), 1);
  EXPECT_EQ(Count(svg, "</svg>"), 1);
  // Boxes too narrow for their numbers have none.
  const std::string dense =
      DrawTimetable(SimulateSchedule(OneForwardOneBackward(2, 300), EqualCosts(2, 1, 2)));
  EXPECT_EQ(Count(dense, ">123</text>"), 0);
  // Chunks differ in lightness.
  const std::string chunks = DrawTimetable(
      SimulateSchedule(InterleavedOneForwardOneBackward(2, 2, 2), EqualCosts(4, 1, 2)));
  EXPECT_EQ(Count(chunks, "fill=\"#2563c9\""), 2 * 2 + 1);
  EXPECT_THAT(chunks, HasSubstr("chunks 0 to 1 from dark to light"));
}

}  // namespace
}  // namespace evenkeel
