// Simulated pipelines with several stages a rank, and with stages that differ, beside closed forms
// and beside the timetable of their schedule (parallel/pipeline_timetable.h), which is worked out
// by other code.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "parallel/phase_schedule.h"
#include "parallel/pipeline_timetable.h"
#include "scheduler/baseline_step.h"
#include "scheduler/disaggregated_step.h"
#include "tests/support/pool_draw.h"

namespace evenkeel {
namespace {

using testing_support::PoolRandom;
using Documents = std::vector<std::vector<std::vector<int64_t>>>;  // cu_seqlens by replica, batch

constexpr double kFast = 1e18;  // bytes per second

ClusterShape Cluster(double bytes_per_second, double latency = 0) {
  ClusterShape cluster;
  cluster.gpus_per_node = 1;
  cluster.network = cluster.nvlink = {bytes_per_second, latency};
  return cluster;
}

// Stages of one layer that takes a second a token forward and two backward, attention included:
// a third of it each for what comes before, for attention (of one token), and for what comes after.
StepCosts EqualCosts(int stages) {
  StepCosts costs;
  costs.stages.resize(static_cast<size_t>(stages));
  for (StageCost& stage : costs.stages) stage.layers = {{{1. / 3, 2. / 3}, {1. / 3, 2. / 3}, {}}};
  costs.token_bytes = {.q = 1, .kv = 2, .out = 1, .lse = 0, .kv_gradient = 4};
  costs.stage_bytes = 1;
  costs.forward.cost = AttentionCost::PerPair(1. / 3);
  costs.backward.cost = AttentionCost::PerPair(2. / 3);
  return costs;
}

// Stages of so many layers in which nothing but attention takes time: 1e-6 seconds a pair.
StepCosts AttentionCosts(const std::vector<int>& layers) {
  StepCosts costs;
  costs.stages.resize(layers.size());
  for (size_t s = 0; s < layers.size(); ++s) {
    costs.stages[s].layers.resize(static_cast<size_t>(layers[s]));
  }
  costs.forward.cost = costs.backward.cost = AttentionCost::PerPair(1e-6);
  return costs;
}

// One replica's micro-batches of one document each.
Documents DocumentsOf(const std::vector<int64_t>& lengths) {
  Documents documents(1);
  for (int64_t length : lengths) documents[0].push_back({0, length});
  return documents;
}

// Both systems: the baseline, and the disaggregated one with every owner's attention left to it.
std::vector<SimulatedStep> BothSteps(int pp, const ClusterShape& cluster, const StepCosts& costs,
                                     const std::vector<int64_t>& lengths) {
  BaselineSetup baseline;
  baseline.pp = pp;
  baseline.micro_batches = static_cast<int64_t>(lengths.size());
  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t length : lengths) micro_batches.push_back({length});
  DisaggregatedSetup setup;
  setup.pp = pp;
  setup.balance = false;
  setup.split = SequenceSplit::kContiguous;
  return {SimulatePacked(baseline, cluster, costs, micro_batches),
          SimulateDisaggregated(setup, cluster, costs, DocumentsOf(lengths))};
}

// Narayanan et al., SC 2021: of p ranks with v stages each that all take as long, with free
// messages and m micro-batches, a multiple of p, a rank idles (p - 1) / (v m) of the time that it
// computes.
TEST(SimulatedPipeline, BubbleOfInterleavedOneForwardOneBackward) {
  for (int p = 1; p <= 5; ++p) {
    for (int v = 1; v <= (p == 1 ? 1 : 4); ++v) {
      for (int64_t m = p; m <= 4 * p; m += p) {
        SCOPED_TRACE(testing::Message() << "p " << p << " v " << v << " m " << m);
        const std::vector<int64_t> lengths(static_cast<size_t>(m), 1);
        const double computed = 3.0 * v * static_cast<double>(m);
        const double bubble = (p - 1.0) / (v * static_cast<double>(m));
        for (const SimulatedStep& step : BothSteps(p, Cluster(kFast), EqualCosts(p * v), lengths)) {
          ASSERT_NEAR(step.seconds, computed * (1 + bubble), 1e-9);
          ASSERT_EQ(step.busy.size(), p);
          for (const SimBusy& busy : step.busy) ASSERT_NEAR(busy.compute(), computed, 1e-9);
          ASSERT_NEAR(IdleShare(step), bubble / (1 + bubble), 1e-12);
        }
      }
    }
  }
}

// Pooled, the ranks that wait in warm-up and drain attend for the others: with nothing but
// attention there is no bubble, whatever v.
TEST(SimulatedPipeline, RanksWithoutAPassServe) {
  for (int v : {1, 2, 4}) {
    DisaggregatedSetup setup;
    setup.pp = 4;
    setup.planning.tolerance = 0.01;
    const StepCosts costs = AttentionCosts(std::vector<int>(static_cast<size_t>(4 * v), 4 / v));
    const Documents documents = DocumentsOf(std::vector<int64_t>(4, 1 << 15));
    const double pairs = 4 * CausalPairs(1 << 15, 1 << 15) * 16;
    const double pooled = SimulateDisaggregated(setup, Cluster(kFast), costs, documents).seconds;
    EXPECT_NEAR(pooled / (2e-6 * pairs / 4), 1, 0.02) << v;
  }
}

// A micro-batch alone goes through p v stages and back: so many messages less one each way, which
// nothing hides.
TEST(SimulatedPipeline, AMicroBatchIsSentFromStageToStage) {
  for (int p : {2, 3, 4}) {
    for (int v : {1, 2, 3}) {
      const ClusterShape cluster = Cluster(2, 0.25);
      for (const SimulatedStep& step : BothSteps(p, cluster, EqualCosts(p * v), {1})) {
        EXPECT_NEAR(step.seconds, 3 * p * v + 2 * (p * v - 1) * (0.25 + 0.5), 1e-9)
            << "p " << p << " v " << v;
      }
    }
  }
}

// Stages as they come: other numbers of layers, none of softmax attention in some, an embedding and
// a head, of micro-batches that are alike. The baseline's ranks wait for nothing but their own
// messages, so the timetable of the schedule holds.
TEST(SimulatedPipeline, IsTheTimetableOfItsSchedule) {
  int with_none = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    PoolRandom draw(seed);
    const auto p = static_cast<int>(draw(2, 4)), v = static_cast<int>(draw(1, 3));
    const int64_t m = draw(1, 9), tokens = draw(1, 50);
    const auto seconds = [&draw] { return 0.01 * static_cast<double>(draw(1, 100)); };
    StepCosts costs;
    costs.forward.cost = AttentionCost::PerPair(seconds());
    costs.backward.cost = AttentionCost::PerPair(seconds());
    costs.stage_bytes = 3;
    const auto count = static_cast<double>(tokens);
    const double pairs = count * (count + 1) / 2;
    StageCosts expected;
    for (int s = 0; s < p * v; ++s) {
      StageCost stage;
      stage.tail = {seconds(), seconds()};
      if (s == 0) stage.embedding = {seconds(), seconds()};
      if (s + 1 == p * v) stage.head = {seconds(), seconds()};
      double forward = stage.tail.forward + stage.embedding.forward;
      double backward =
          stage.tail.backward + stage.embedding.backward + stage.head.forward + stage.head.backward;
      stage.layers.resize(static_cast<size_t>(draw(0, 3)));
      for (SoftmaxLayerCost& layer : stage.layers) {
        layer = {{seconds(), seconds()}, {seconds(), seconds()}, {}};
        if (draw.OneIn(3)) layer.others = {seconds(), seconds()};
        forward += layer.pre.forward + layer.post.forward + layer.others.forward;
        backward += layer.pre.backward + layer.post.backward + layer.others.backward;
      }
      const auto layers = static_cast<double>(stage.layers.size());
      with_none += stage.layers.empty() ? 1 : 0;
      expected.forward.push_back(forward * count +
                                 layers * pairs * costs.forward.cost.Seconds(1, 1));
      expected.backward.push_back(backward * count +
                                  layers * pairs * costs.backward.cost.Seconds(1, 1));
      costs.stages.push_back(std::move(stage));
    }
    const std::vector<int64_t> lengths(static_cast<size_t>(m), tokens);
    const std::vector<SimulatedStep> free = BothSteps(p, Cluster(kFast), costs, lengths);
    const PipelineSchedule interleaved = InterleavedOneForwardOneBackward(p, v, m);
    const double baseline = SimulateSchedule(interleaved, expected).makespan;
    ASSERT_NEAR(free[0].seconds, baseline, 1e-9 * baseline);
    // Pooled, a message also waits for its receiver's pass of the tick, and what comes behind it
    // for both: longer than the timetable, but no longer than with a barrier after every tick.
    const double pooled = SimulateSchedule(SamePhaseSchedule(p, v, m), expected).makespan;
    double with_barriers = 0;
    for (const PhaseTick& tick : SamePhaseTicks(p, v, m)) {
      double longest = 0;
      for (int rank = 0; rank < p; ++rank) {
        const TickPass pass = PassAt(tick, p, v, m, rank);
        const auto stage = static_cast<size_t>(pass.chunk * p + rank);
        const bool is_forward = tick.phase == PipelinePhase::kForward;
        const double taken = is_forward ? expected.forward[stage] : expected.backward[stage];
        if (pass.exists()) longest = std::max(longest, taken);
      }
      with_barriers += longest;
    }
    ASSERT_GE(free[1].seconds, pooled * (1 - 1e-9));
    ASSERT_LE(free[1].seconds, with_barriers * (1 + 1e-9));
    // The baseline's messages hold up nothing but their receiver.
    expected.message = 0.5 + 3 * count / 8;
    const double sent = SimulateSchedule(interleaved, expected).makespan;
    ASSERT_NEAR(BothSteps(p, Cluster(8, 0.5), costs, lengths)[0].seconds, sent, 1e-9 * sent);
  }
  EXPECT_GT(with_none, 50);
}

// In layers that one stage has and the other has not, the other serves: all attention is shared.
TEST(SimulatedPipeline, StagesWithFewerLayersServe) {
  for (const std::vector<int>& layers : {std::vector<int>{3, 1}, {1, 3}, {2, 0}, {0, 2}}) {
    DisaggregatedSetup setup;
    setup.pp = 2;
    setup.planning.tolerance = 0.01;
    const double pairs = 3 * CausalPairs(1 << 15, 1 << 15) * (layers[0] + layers[1]);
    const SimulatedStep step = SimulateDisaggregated(setup, Cluster(kFast), AttentionCosts(layers),
                                                     DocumentsOf({1 << 15, 1 << 15, 1 << 15}));
    EXPECT_NEAR(step.seconds / (2e-6 * pairs / 2), 1, 0.02) << layers[0] << " " << layers[1];
  }
}

// By hand: before a layer in which other ranks take part, all results of the one before are waited
// for. Rank 0 has two layers and rank 1 one; all is computed in place, a token takes 1 before and
// 2 after attention, which takes 4.
TEST(SimulatedPipeline, WhereRanksLeaveTheOthersWait) {
  DisaggregatedSetup setup;
  setup.pp = 2;
  setup.balance = false;
  setup.split = SequenceSplit::kContiguous;
  StepCosts costs;
  costs.stages.resize(2);
  costs.stages[0].layers.resize(2, {{1, 1}, {2, 2}, {}});
  costs.stages[1].layers.resize(1, {{1, 1}, {2, 2}, {}});
  costs.stages[1].tail = {0.5, 0.5};
  costs.forward.cost = costs.backward.cost = AttentionCost::PerPair(4);
  const SimulatedStep step =
      SimulateDisaggregated(setup, Cluster(kFast), costs, DocumentsOf({1, 1}), true);
  const auto ends = [&step](int rank) {
    std::vector<double> times;
    for (const SimSpan& span : step.spans) {
      if (span.rank == rank && !span.is_communication) times.push_back(span.end);
    }
    return times;
  };
  // Micro-batch 0: one piece between two layers that the same ranks have. Micro-batch 1, beside
  // rank 1's pass of 0: what comes after a layer, then what comes before the next one. Backward
  // likewise.
  EXPECT_EQ(ends(0), (std::vector<double>{1,  5,  8,  12, 14, 15, 19, 21, 22, 26, 28,  //
                                          31, 35, 36, 38, 42, 43, 46, 50, 53, 57, 58}));
  // Forward of 0 from 14 on, with the tail behind it, backward of it at once; forward of 1, done by
  // rank 0 at 28, after that.
  EXPECT_EQ(ends(1), (std::vector<double>{15, 19, 21, 21.5, 22, 24, 28, 29,  //
                                          30, 34, 36, 36.5, 37, 39, 43, 44}));
}

}  // namespace
}  // namespace evenkeel
