// The plans of a tick, and that the simulator runs these very plans.
#include "scheduler/tick_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "scheduler/disaggregated_step.h"
#include "tests/support/pool_draw.h"

namespace evenkeel {
namespace {

using testing_support::PoolRandom;
using Documents = std::vector<std::vector<std::vector<int64_t>>>;  // cu_seqlens by replica, batch

Documents RandomDocuments(PoolRandom& draw, int replicas, int64_t micro_batches, int64_t longest) {
  Documents documents(static_cast<size_t>(replicas));
  for (auto& replica : documents) {
    for (int64_t m = 0; m < micro_batches; ++m) {
      replica.push_back({0});
      for (int64_t n = draw(0, 5); n > 0; --n) {
        replica.back().push_back(replica.back().back() + draw(0, longest));
      }
    }
  }
  return documents;
}

TEST(TickPlan, StagesWithFewerLayersLeaveTheTick) {
  PoolShape shape;
  shape.mesh = {.pp = 3, .dp = 2, .cp = 1, .tp = 1};
  shape.softmax_layers = {4, 2, 2};
  TickPlanOptions options;
  options.speed.assign(6, 1);
  const Documents documents(2, {{0, 8}, {0, 8}, {0, 8}});
  // Forward tick 2: all stages have a micro-batch.
  const PlannedTick tick = PlanTick(shape, options, documents, {PipelinePhase::kForward, 2});
  EXPECT_EQ(tick.layer_of, (std::vector<int>{0, 0, 1, 1}));
  ASSERT_EQ(tick.layers.size(), 2);
  EXPECT_EQ(tick.layers[0].batches.size(), 6);
  EXPECT_EQ(tick.layers[1].batches.size(), 2);
  EXPECT_EQ(tick.layers[1].batches[1].ranks, (std::vector<int>{1}));
  // Tick 0: the first stage alone.
  const PlannedTick first = PlanTick(shape, options, documents, {PipelinePhase::kForward, 0});
  EXPECT_EQ(first.layers.at(0).batches.size(), 2);
}

// Where queries stay with their owners, a batch that is one nano-batch is planned as a whole.
TEST(TickPlan, OneNanoBatch) {
  PoolShape shape;
  shape.mesh = {.pp = 1, .dp = 1, .cp = 2, .tp = 1};
  shape.softmax_layers = {1};
  shape.split = SequenceSplit::kContiguous;
  TickPlanOptions options;
  options.speed.assign(2, 1);
  options.balances = false;
  const PlannedTick tick =
      PlanTick(shape, options, Documents{{{0, 6, 10}}}, {PipelinePhase::kForward, 0});
  const PlannedLayer& layer = tick.layers.at(0);
  EXPECT_EQ(RowsOfNanos(layer.batches, 2), (std::vector<NanoRows>{{5, 0}, {5, 0}}));
  EXPECT_TRUE(layer.nano[1].plan.tasks.empty());
  ASSERT_EQ(layer.nano[0].plan.tasks.size(), 3);
  EXPECT_EQ(layer.nano[0].plan.load, (std::vector<double>{15, 6 + 10}));
}

// Whatever the layout, what every rank computes in a simulated step is what the plans of its ticks
// give it, and as many messages pass as the plans' tasks need.
TEST(TickPlan, IsWhatTheSimulatorRuns) {
  for (uint64_t seed = 1; seed <= 160; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    PoolRandom draw(seed);
    DisaggregatedSetup setup;
    setup.pp = static_cast<int>(draw(1, 3));
    setup.replicas = static_cast<int>(draw(1, 3));
    setup.ranks = static_cast<int>(draw(1, 3));
    setup.servers = static_cast<int>(draw(0, 2));
    setup.owners_serve = setup.servers == 0 || draw.OneIn(2);
    setup.split = draw.OneIn(3) ? SequenceSplit::kContiguous : SequenceSplit::kHalves;
    setup.balance = !draw.OneIn(4) || !setup.owners_serve;
    setup.planning = {.tolerance = 0.1, .shard_tokens = draw(1, 16)};
    const int chunks = setup.pp > 1 ? static_cast<int>(draw(1, 3)) : 1;
    const bool is_even = draw.OneIn(2);
    const int64_t layers = draw(1, 3), micro_batches = draw(1, 2 * setup.pp + 1);
    const Documents documents = RandomDocuments(draw, setup.replicas, micro_batches, 300);

    StepCosts costs;
    costs.stages.resize(static_cast<size_t>(setup.pp * chunks));
    for (StageCost& stage : costs.stages) {
      const int64_t count = is_even ? layers : draw(0, 3);
      stage.layers.resize(static_cast<size_t>(count), {{1, 2}, {3, 4}, {}});
      stage.tail = {5, 6};
      for (SoftmaxLayerCost& layer : stage.layers) {
        if (draw.OneIn(3)) layer.others = {7, 8};
      }
    }
    costs.token_bytes = {.q = 1, .kv = 2, .out = 1, .lse = 1, .kv_gradient = 4};
    costs.forward.cost = AttentionCost::PerPair(1);
    costs.backward.cost = AttentionCost::PerPair(3);
    ClusterShape cluster;
    cluster.network = cluster.nvlink = {1e3, 0.1};
    const SimulatedStep step = SimulateDisaggregated(setup, cluster, costs, documents, true);

    PoolShape shape;
    shape.mesh = {setup.pp, setup.replicas, setup.ranks, 1};
    for (const StageCost& stage : costs.stages) {
      shape.softmax_layers.push_back(static_cast<int64_t>(stage.layers.size()));
    }
    shape.num_dedicated = setup.servers;
    shape.split = setup.split;
    TickPlanOptions options;
    options.plan = setup.planning;
    options.bytes = costs.token_bytes;
    options.speed.assign(static_cast<size_t>(shape.num_ranks()), 1);
    if (!setup.owners_serve) {
      std::fill_n(options.speed.begin(), static_cast<size_t>(shape.num_owners()), 0.0);
    }
    options.balances = setup.balance;
    std::vector<double> expected(static_cast<size_t>(shape.num_ranks()), 0);
    size_t messages = 0;
    for (const PhaseTick& tick : SamePhaseTicks(setup.pp, chunks, micro_batches)) {
      const bool forward = tick.phase == PipelinePhase::kForward;
      options.forward = costs.forward.cost;
      options.backward = costs.backward.cost;
      const PlannedTick planned = PlanTick(shape, options, documents, tick);
      for (const int layer : planned.layer_of) {
        for (const auto& [pool, plan] : planned.layers[static_cast<size_t>(layer)].nano) {
          for (size_t r = 0; r < expected.size(); ++r) expected[r] += plan.load[r];
          for (const AttentionLink& link : LinksOf(pool, plan.tasks)) {
            messages += !forward || link.q_tokens > 0 ? 2 : 1;
          }
        }
      }
    }
    for (size_t r = 0; r < expected.size(); ++r) {
      ASSERT_NEAR(step.busy[r].attention, expected[r], 1e-9 * expected[r]) << "rank " << r;
    }
    size_t sent = 0;
    for (const SimSpan& span : step.spans) sent += span.is_send ? 1 : 0;
    // And activations, and their gradients, from stage to stage: once each for every stage but one.
    // What a rank computes beside attention is that of its stages.
    std::vector<double> linear(expected.size(), 0);
    const auto seconds_of = [](const StageCost& stage) {
      double sum = 5 + 6;
      for (const SoftmaxLayerCost& layer : stage.layers) {
        sum += 1 + 2 + 3 + 4 + layer.others.forward + layer.others.backward;
      }
      return sum;
    };
    for (const auto& replica : documents) {
      const auto dp = static_cast<int>(&replica - documents.data());
      for (const std::vector<int64_t>& cu_seqlens : replica) {
        const PooledBatch batch{cu_seqlens, std::vector<int>(static_cast<size_t>(setup.ranks)),
                                setup.split};
        for (int cp = 0; cp < setup.ranks; ++cp) {
          const NanoRows rows = RowsOfNanos(batch, cp);
          if (rows[0] + rows[1] == 0) continue;
          messages += 2 * (costs.stages.size() - 1);
          for (size_t s = 0; s < costs.stages.size(); ++s) {
            const int at = shape.RankOf(static_cast<int>(s) % setup.pp, dp, cp);
            linear[static_cast<size_t>(at)] +=
                static_cast<double>(rows[0] + rows[1]) * seconds_of(costs.stages[s]);
          }
        }
      }
    }
    for (size_t r = 0; r < expected.size(); ++r) {
      ASSERT_NEAR(step.busy[r].linear, linear[r], 1e-9 * linear[r]) << "rank " << r;
    }
    ASSERT_EQ(sent, messages);
  }
}

}  // namespace
}  // namespace evenkeel
