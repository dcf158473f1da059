#include "launch/attention_planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "parallel/batch_layout.h"
#include "tests/support/pool_numbers.h"

namespace evenkeel {
namespace {

using testing_support::NumbersOf;
using testing_support::PlanNumbers;

constexpr int64_t kSequenceLength = 1024;

std::vector<int64_t> MixedLengths() {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 60; ++i) lengths.push_back(i % 7 == 0 ? 3000 : 40 + 97 * i % 500);
  return lengths;
}

SampleOrder MakeOrder(const std::vector<int64_t>& lengths = MixedLengths()) {
  return *SampleOrder::Create(lengths, kSequenceLength, 5);
}

PoolShape MakeShape(const MeshShape& mesh) {
  PoolShape shape;
  shape.mesh = mesh;
  for (int stage = 0; stage < mesh.pp; ++stage) shape.softmax_layers.push_back(2 + stage);
  return shape;
}

PoolPlanOptions MakeOptions(const PoolShape& shape) {
  PoolPlanOptions options;
  options.forward = AttentionCost::PerPair(1e-9);
  options.backward = AttentionCost::PerPair(2.5e-9);
  options.plan = {.tolerance = 0.02, .shard_tokens = 16};
  options.bytes = {.q = 256, .kv = 128, .out = 256, .lse = 16, .kv_gradient = 128};
  options.speed.assign(static_cast<size_t>(shape.num_ranks()), 1);
  return options;
}

// The plan of a step from the samples, beside the planner.
PlanNumbers Expected(const PoolShape& shape, const PoolPlanOptions& options,
                     const BatchSizes& batches, int64_t step, int rank) {
  SampleOrder order = MakeOrder();
  std::vector<std::vector<std::vector<int64_t>>> cu_seqlens(static_cast<size_t>(shape.mesh.dp));
  for (int replica = 0; replica < shape.mesh.dp; ++replica) {
    auto& of_replica = cu_seqlens[static_cast<size_t>(replica)];
    for (const MicroBatch& micro : MicroBatchesOfRank(
             step, batches.global_batch, batches.micro_batch, replica, shape.mesh.dp)) {
      of_replica.push_back({0});
      for (int64_t s = micro.first_sample; s < micro.first_sample + micro.num_samples; ++s) {
        for (const Piece& piece : order.Sample(s)) {
          of_replica.back().push_back(of_replica.back().back() + piece.length);
        }
      }
    }
  }
  return NumbersOf(PlanPoolStep(shape, options, cu_seqlens, rank));
}

TEST(AttentionPlanner, PlansStepsInAndOutOfOrder) {
  // The third micro-batch of the second replica is empty.
  const BatchSizes batches = {.global_batch = 9, .micro_batch = 2};
  const PoolShape shape = MakeShape({.pp = 2, .dp = 2, .cp = 2, .tp = 1});
  const PoolPlanOptions options = MakeOptions(shape);
  for (const int rank : {0, 5}) {
    AttentionPlanner planner(shape, options, MakeOrder(), batches, rank);
    std::vector<PlanNumbers> plans;
    for (const int64_t step : {0, 1, 2, 7, 8, 3, 3, 0}) {
      plans.push_back(NumbersOf(planner.Take(step)));
      EXPECT_EQ(plans.back(), Expected(shape, options, batches, step, rank)) << "step " << step;
      EXPECT_GE(planner.waited_seconds(), 0);
      EXPECT_LT(planner.waited_seconds(), 60);
    }
    EXPECT_NE(plans[0], plans[1]);
    EXPECT_EQ(plans[5], plans[6]);
    EXPECT_EQ(plans[0], plans[7]);
  }
}

// Two replicas of a pipeline of two stages, 16 passes a round: 61 samples are two rounds, and in
// the last pass the second replica has none.
TEST(AttentionPlanner, PlansRoundsOfEvaluationsBetweenSteps) {
  const BatchSizes batches = {.global_batch = 4, .micro_batch = 1};
  const PoolShape shape = MakeShape({.pp = 2, .dp = 2, .cp = 1, .tp = 1});
  PoolPlanOptions options = MakeOptions(shape);
  const EvaluationSamples samples = *EvaluationSamples::Create(
      MixedLengths(), kSequenceLength, /*max_samples=*/61, shape.mesh.dp, shape.mesh.pp);
  ASSERT_EQ(samples.num_rounds(), 2);
  const auto expected = [&](int64_t round) {
    return NumbersOf(PlanPoolForward(shape, options, samples.DocumentsOf(round), 3));
  };
  AttentionPlanner planner(shape, options, MakeOrder(), batches, 3, samples);
  EXPECT_EQ(NumbersOf(planner.TakeEvaluation(0)), expected(0));
  EXPECT_EQ(NumbersOf(planner.Take(0)), Expected(shape, options, batches, 0, 3));
  EXPECT_EQ(NumbersOf(planner.TakeEvaluation(1)), expected(1));
  EXPECT_EQ(NumbersOf(planner.TakeEvaluation(1)), expected(1)) << "again, a server was lost";
  EXPECT_EQ(NumbersOf(planner.Take(1)), Expected(shape, options, batches, 1, 3));
  EXPECT_NE(expected(0), expected(1));
  // Nothing was planned beyond the last round, so that the next evaluation knows the new speeds.
  std::vector<ServerLoad> loads(4, {{1, 1}, {1, 1}});
  loads[1].seconds[0] = loads[1].seconds[1] = 3;
  planner.Learn(loads);
  const PlanNumbers before = expected(0);
  options.speed = planner.speed();
  EXPECT_EQ(NumbersOf(planner.TakeEvaluation(0)), expected(0));
  EXPECT_NE(expected(0), before);
}

TEST(AttentionPlanner, NobodyTakesThePlan) {
  const PoolShape shape = MakeShape({.pp = 1, .dp = 2, .cp = 1, .tp = 1});
  AttentionPlanner planner(shape, MakeOptions(shape), MakeOrder(), {4, 1}, 0);
  planner.Take(0);  // begins one more
}

// Every rank has begun the next step's plan when the loads of this one are known, so that all plan
// it with the speeds of before.
TEST(AttentionPlanner, LearnsForPlansBegunLater) {
  const BatchSizes batches = {4, 1};
  const PoolShape shape = MakeShape({.pp = 1, .dp = 4, .cp = 1, .tp = 1});
  PoolPlanOptions options = MakeOptions(shape);
  AttentionPlanner planner(shape, options, MakeOrder(), batches, 1);
  planner.Take(0);
  std::vector<ServerLoad> loads(4, {{1, 1}, {1, 1}});
  loads[1].seconds[0] = loads[1].seconds[1] = 3;
  planner.Learn(loads);
  EXPECT_LT(planner.speed()[1], 0.8);
  EXPECT_EQ(NumbersOf(planner.Take(1)), Expected(shape, options, batches, 1, 1));
  options.speed = planner.speed();
  EXPECT_EQ(NumbersOf(planner.Take(2)), Expected(shape, options, batches, 2, 1));
}

TEST(AttentionPlanner, LearnsByTable) {
  const PoolShape shape = MakeShape({.pp = 1, .dp = 3, .cp = 1, .tp = 1});
  AttentionPlanner planner(shape, MakeOptions(shape), MakeOrder(), {3, 1}, 0);
  // They did 1 and 0.5 planned seconds a second, 0.75 in the mean. The third had nothing to do.
  planner.Learn({{{3, 0}, {3, 0}}, {{3, 0}, {6, 0}}, {}});
  EXPECT_DOUBLE_EQ(planner.speed()[0], std::sqrt(4.0 / 3));
  EXPECT_DOUBLE_EQ(planner.speed()[1], std::sqrt(2.0 / 3));
  EXPECT_DOUBLE_EQ(planner.speed()[2], 1);
  // Each phase has a rate of its own, whatever the cost model thinks of a backward pass: forward
  // 1, backward 3 seconds a planned one, and all are as fast.
  AttentionPlanner even(shape, MakeOptions(shape), MakeOrder(), {3, 1}, 0);
  even.Learn({{{4, 1}, {4, 3}}, {{1, 4}, {1, 12}}, {{2, 2}, {2, 6}}});
  EXPECT_EQ(even.speed(), (std::vector<double>{1, 1, 1}));
}

// A planner a rank, and servers whose speed nobody was told.
class Servers {
 public:
  Servers(const PoolPlanOptions& options, const PoolShape& shape, std::vector<double> speed,
          const std::vector<int64_t>& lengths = MixedLengths())
      : speed_(std::move(speed)) {
    for (int rank = 0; rank < shape.num_ranks(); ++rank) {
      planners_.push_back(std::make_unique<AttentionPlanner>(shape, options, MakeOrder(lengths),
                                                             BatchSizes{8, 2}, rank));
    }
  }

  void SetSpeed(size_t server, double speed) { speed_[server] = speed; }

  // Runs a step whose times scatter by up to `noise`. Returns the planned loads over their sum.
  std::vector<double> Step(double noise) {
    std::vector<ServerLoad> loads(planners_.size());
    std::vector<double> share;
    for (size_t r = 0; r < planners_.size(); ++r) {
      const PoolStep plan = planners_[r]->Take(step_);
      for (const PoolTick& tick : plan.ticks) {
        const int phase = tick.tick.phase == PipelinePhase::kForward ? 0 : 1;
        for (size_t number = 0; number < tick.layer_of.size(); ++number) {
          for (const ServerExchange& nano : tick.layer(number).nano) {
            const double scatter =
                1 + noise * std::uniform_real_distribution<double>(-1, 1)(random_);
            loads[r].planned[phase] += nano.planned_seconds;
            loads[r].seconds[phase] += nano.planned_seconds / speed_[r] * scatter;
          }
        }
      }
      share.push_back(loads[r].planned[0] + loads[r].planned[1]);
    }
    ++step_;
    for (const auto& planner : planners_) {
      planner->Learn(loads);
      EXPECT_EQ(planner->speed(), planners_.front()->speed()) << "ranks must plan alike";
    }
    imbalance_ = MeasuredImbalance(loads);
    const double sum = std::accumulate(share.begin(), share.end(), 0.0);
    for (double& each : share) each /= sum;
    return share;
  }

  const std::vector<double>& speed() const { return planners_.front()->speed(); }
  double imbalance() const { return imbalance_; }

 private:
  std::vector<double> speed_;
  std::vector<std::unique_ptr<AttentionPlanner>> planners_;
  std::minstd_rand random_{7};
  int64_t step_ = 0;
  double imbalance_ = 0;
};

class LearningTest : public testing::Test {
 protected:
  LearningTest()
      : shape_(MakeShape({.pp = 1, .dp = 4, .cp = 1, .tp = 1})), options_(MakeOptions(shape_)) {}

  PoolShape shape_;
  PoolPlanOptions options_;
};

TEST_F(LearningTest, HalfTheSpeedGetsHalfTheWork) {
  Servers servers(options_, shape_, {1, 1, 0.5, 1});
  EXPECT_NEAR(servers.Step(0.04)[2], 1.0 / 4, 0.02);
  EXPECT_GT(servers.imbalance(), 1.5);
  for (int step = 0; step < 5; ++step) servers.Step(0.04);
  for (int step = 0; step < 5; ++step) {
    EXPECT_NEAR(servers.Step(0.04)[2], 0.5 / 3.5, 0.02);
    EXPECT_LT(servers.imbalance(), 1.15);
  }
  // And all of it again when it is as fast as the others.
  servers.SetSpeed(2, 1);
  for (int step = 0; step < 6; ++step) servers.Step(0.04);
  EXPECT_NEAR(servers.Step(0.04)[2], 1.0 / 4, 0.02);
}

TEST_F(LearningTest, NoiseMovesNothing) {
  Servers servers(options_, shape_, {2, 2, 2, 2});  // the cost model errs by as much for all
  for (int step = 0; step < 10; ++step) {
    for (const double share : servers.Step(0.04)) EXPECT_NEAR(share, 1.0 / 4, 0.02);
    EXPECT_EQ(servers.speed(), (std::vector<double>{1, 1, 1, 1}));
  }
}

TEST_F(LearningTest, OneThatStandsStillKeepsALittleAndComesBack) {
  Servers servers(options_, shape_, {1, 1, 1, 1e-6});
  std::vector<double> share;
  for (int step = 0; step < 14; ++step) share = servers.Step(0.02);
  EXPECT_LT(share[3], 0.02);
  for (size_t server = 0; server < 3; ++server) EXPECT_NEAR(servers.speed()[server], 1, 0.1);
  EXPECT_GE(servers.speed()[3], 1.0 / 64);
  EXPECT_LT(servers.speed()[3], 1.0 / 16);
  servers.SetSpeed(3, 1);
  for (int step = 0; step < 15; ++step) share = servers.Step(0.02);
  EXPECT_NEAR(share[3], 1.0 / 4, 0.02);
}

// Where documents are not cut the slow one gets none, and nobody sees that it is fast again.
TEST_F(LearningTest, ComesBackWhereShardsAreLarge) {
  options_.plan.shard_tokens = kSequenceLength;
  Servers servers(options_, shape_, {1, 1, 1, 1e-6}, std::vector<int64_t>(40, kSequenceLength));
  int without_work = 0;
  for (int step = 0; step < 30; ++step) without_work += servers.Step(0.02)[3] == 0 ? 1 : 0;
  EXPECT_GT(without_work, 15);
  servers.SetSpeed(3, 1);
  for (int step = 0; step < 30; ++step) servers.Step(0.02);
  for (int step = 0; step < 5; ++step) EXPECT_NEAR(servers.Step(0.02)[3], 1.0 / 4, 0.01);
}

TEST_F(LearningTest, SpeedZeroStaysOut) {
  options_.speed[0] = 0;
  Servers servers(options_, shape_, {1, 1, 0.5, 1});
  for (int step = 0; step < 8; ++step) {
    const std::vector<double> share = servers.Step(0.02);
    EXPECT_EQ(share[0], 0);
    EXPECT_EQ(servers.speed()[0], 0);
    if (step > 5) {
      EXPECT_NEAR(share[2], 0.2, 0.03);
    }
  }
}

TEST(MeasuredImbalance, ByTable) {
  EXPECT_DOUBLE_EQ(MeasuredImbalance({}), 1);
  EXPECT_DOUBLE_EQ(MeasuredImbalance({{}, {}}), 1);
  EXPECT_DOUBLE_EQ(MeasuredImbalance({{{1, 1}, {1, 2}}, {{1, 0}, {1, 0}}}), 1.5);
  // Who was given nothing does not count.
  EXPECT_DOUBLE_EQ(MeasuredImbalance({{{1, 1}, {1, 2}}, {}, {{1, 0}, {1, 0}}}), 1.5);
}

}  // namespace
}  // namespace evenkeel
