#include "launch/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace evenkeel {
namespace {

LrSchedule Cosine() {
  LrSchedule schedule;
  schedule.decay = LrDecay::kCosine;
  schedule.lr = 1;
  schedule.min_lr = 0.2;
  schedule.warmup_steps = 10;
  schedule.total_steps = 110;
  return schedule;
}

LrSchedule Constant() {
  LrSchedule schedule = Cosine();
  schedule.decay = LrDecay::kConstantThenDecay;
  schedule.decay_steps = 40;
  return schedule;
}

TEST(LearningRate, FollowsTheTable) {
  const struct {
    LrSchedule schedule;
    int64_t step;
    double lr;
  } cases[] = {
      {Cosine(), 0, 0.1},
      {Cosine(), 4, 0.5},
      {Cosine(), 9, 1},
      {Cosine(), 10, 1},
      {Cosine(), 35, 0.2 + 0.4 * (1 + std::sqrt(0.5))},
      {Cosine(), 60, 0.6},
      {Cosine(), 110, 0.2},
      {Cosine(), 1000000, 0.2},
      {Constant(), 0, 0.1},
      {Constant(), 10, 1},
      {Constant(), 69, 1},
      {Constant(), 70, 1},
      {Constant(), 80, 0.8},
      {Constant(), 90, 0.6},
      {Constant(), 109, 0.22},
      {Constant(), 110, 0.2},
      {Constant(), 111, 0.2},
  };
  for (const auto& c : cases) {
    EXPECT_NEAR(LearningRate(c.schedule, c.step), c.lr, 1e-12) << "step " << c.step;
  }
}

TEST(LearningRate, RisesThenNeverRisesAgainAndDoesNotJump) {
  for (const LrSchedule& schedule : {Cosine(), Constant()}) {
    for (int64_t step = 1; step < 130; ++step) {
      const double before = LearningRate(schedule, step - 1), now = LearningRate(schedule, step);
      if (step < schedule.warmup_steps) {
        EXPECT_GT(now, before) << step;
      } else {
        EXPECT_LE(now, before) << step;
      }
      // The steepest parts: warm-up 0.1 a step, linear decay 0.02, cosine 0.8 pi / 2 / 100.
      EXPECT_LE(std::abs(now - before), step <= schedule.warmup_steps ? 0.1 + 1e-12 : 0.0200001)
          << step;
      EXPECT_GE(now, schedule.min_lr * (step < schedule.warmup_steps ? 0.5 : 1));
      EXPECT_LE(now, schedule.lr);
    }
  }
}

TEST(LearningRate, WithoutWarmUpStartsAtTheTop) {
  LrSchedule schedule = Cosine();
  schedule.warmup_steps = 0;
  EXPECT_EQ(LearningRate(schedule, 0), 1);
}

TEST(LearningRate, WarmUpOfTheWholeRun) {
  LrSchedule schedule = Cosine();
  schedule.warmup_steps = schedule.total_steps = 5;
  EXPECT_NEAR(LearningRate(schedule, 0), 0.2, 1e-12);
  EXPECT_EQ(LearningRate(schedule, 4), 1);
  EXPECT_EQ(LearningRate(schedule, 5), schedule.min_lr);
}

TEST(LearningRate, DecayCannotBeginBeforeWarmUpEnds) {
  LrSchedule schedule = Constant();
  schedule.decay_steps = 1000;  // longer than the run
  EXPECT_EQ(LearningRate(schedule, 9), 1);
  EXPECT_EQ(LearningRate(schedule, 10), 1);
  EXPECT_NEAR(LearningRate(schedule, 60), 0.6, 1e-12);
}

TEST(LearningRate, WithoutDecayStaysToTheEnd) {
  LrSchedule schedule = Constant();
  schedule.decay_steps = 0;
  EXPECT_EQ(LearningRate(schedule, 109), 1);
  EXPECT_EQ(LearningRate(schedule, 110), schedule.min_lr);
}

TEST(LearningRate, OfOneStep) {
  LrSchedule schedule = Cosine();
  schedule.warmup_steps = 0;
  schedule.total_steps = 1;
  EXPECT_EQ(LearningRate(schedule, 0), 1);
  EXPECT_EQ(LearningRate(schedule, 1), schedule.min_lr);
}

}  // namespace
}  // namespace evenkeel
