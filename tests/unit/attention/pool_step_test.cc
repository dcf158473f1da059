// A step's plans beside what takes part in each layer of each tick, worked out here once more.
#include "attention/pool_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "scheduler/pool_layout.h"
#include "tests/support/pool_draw.h"
#include "tests/support/pool_numbers.h"

namespace evenkeel {
namespace {

using testing_support::NumbersOf;
using testing_support::PoolRandom;
using Documents = std::vector<std::vector<std::vector<int64_t>>>;  // cu_seqlens by replica, batch

// The chunk and micro-batch of a rank: passes of a group of as many micro-batches as there are
// ranks, chunk by chunk, each a tick after the rank before.
struct Pass {
  int64_t micro_batch = -1, layers = 0;
};
Pass PassOf(const PoolShape& shape, const Documents& documents, const PhaseTick& tick, int pp) {
  const bool forward = tick.phase == PipelinePhase::kForward;
  int64_t left = tick.index - (forward ? pp : shape.mesh.pp - 1 - pp);
  const auto chunks = static_cast<int>(shape.softmax_layers.size()) / shape.mesh.pp;
  for (int64_t group = 0; left >= 0; group += shape.mesh.pp) {
    for (int i = 0; i < chunks; ++i) {
      for (int64_t m = group; m < group + shape.mesh.pp; ++m) {
        if (left-- > 0) continue;
        if (m >= static_cast<int64_t>(documents[0].size())) return {};
        const int stage = (forward ? i : chunks - 1 - i) * shape.mesh.pp + pp;
        return {m, shape.softmax_layers[static_cast<size_t>(stage)]};
      }
    }
  }
  return {};
}

// Who has a layer of this number in the tick: ranks with a micro-batch and as many softmax layers.
std::vector<PooledBatch> BatchesOf(const PoolShape& shape, const Documents& documents,
                                   const PhaseTick& tick, int64_t number) {
  std::vector<PooledBatch> batches;
  const MeshShape& mesh = shape.mesh;
  for (int pp = 0; pp < mesh.pp; ++pp) {
    const auto [at, layers] = PassOf(shape, documents, tick, pp);
    if (at < 0 || layers <= number) continue;
    for (int dp = 0; dp < mesh.dp; ++dp) {
      PooledBatch batch{documents[static_cast<size_t>(dp)][static_cast<size_t>(at)], {}};
      for (int cp = 0; cp < mesh.cp; ++cp) {
        batch.ranks.push_back((pp * mesh.dp + dp) * mesh.cp + cp);
      }
      batches.push_back(std::move(batch));
    }
  }
  return batches;
}

TEST(PlanPoolStep, PoolsWhatTakesPartInEveryLayer) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    PoolRandom draw(seed);
    PoolShape shape;
    shape.mesh = {.pp = static_cast<int>(draw(1, 3)),
                  .dp = static_cast<int>(draw(1, 3)),
                  .cp = static_cast<int>(draw(1, 3)),
                  .tp = static_cast<int>(draw(1, 2))};
    shape.num_dedicated = static_cast<int>(draw(0, 2));
    const auto chunks = static_cast<int>(draw(1, 3));
    for (int stage = 0; stage < shape.mesh.pp * chunks; ++stage) {
      shape.softmax_layers.push_back(draw(0, 4));
    }
    Documents documents(static_cast<size_t>(shape.mesh.dp));
    const int64_t micro_batches = draw(0, 4);
    for (auto& replica : documents) {
      for (int64_t m = 0; m < micro_batches; ++m) {
        replica.push_back({0});
        for (int64_t n = draw(0, 4); n > 0; --n) {
          replica.back().push_back(replica.back().back() + draw(0, 80));
        }
      }
    }
    PoolPlanOptions options;
    options.backward = AttentionCost::PerPair(2);
    options.plan = {.tolerance = 0.1, .shard_tokens = 4};
    options.bytes = {.q = 64, .kv = 64, .out = 64, .lse = 8, .kv_gradient = 64};
    options.speed.assign(static_cast<size_t>(shape.num_ranks()), 1);
    options.has_residents = draw.OneIn(2);
    const auto rank = static_cast<int>(draw(0, shape.num_ranks() - 1));
    const PoolStep step = PlanPoolStep(shape, options, documents, rank);
    const std::vector<PhaseTick> ticks = SamePhaseTicks(shape.mesh.pp, chunks, micro_batches);
    ASSERT_EQ(step.ticks.size(), ticks.size());
    // Forward passes alone are the forward ticks of a step.
    PoolStep forward_ticks = PlanPoolStep(shape, options, documents, rank);
    std::erase_if(forward_ticks.ticks,
                  [](const PoolTick& tick) { return tick.tick.phase == PipelinePhase::kBackward; });
    ASSERT_EQ(NumbersOf(PlanPoolForward(shape, options, documents, rank)),
              NumbersOf(forward_ticks));
    for (size_t t = 0; t < ticks.size(); ++t) {
      const PoolTick& tick = step.ticks[t];
      ASSERT_EQ(tick.tick, ticks[t]);
      int64_t most = 0;
      for (int pp = 0; pp < shape.mesh.pp; ++pp) {
        most = std::max(most, PassOf(shape, documents, ticks[t], pp).layers);
      }
      ASSERT_EQ(tick.layer_of.size(), static_cast<size_t>(most));
      const AttentionCost& cost =
          ticks[t].phase == PipelinePhase::kForward ? options.forward : options.backward;
      for (int64_t number = 0; number < most; ++number) {
        const auto batches = BatchesOf(shape, documents, ticks[t], number);
        const PoolLayer& layer = tick.layer(static_cast<size_t>(number));
        ServerExchange expected[2];
        double heaviest = 0, mean = 0;
        for (int n = 0; n < 2; ++n) {
          AttentionPool pool;
          pool.num_ranks = shape.num_ranks();
          pool.speed = options.speed;
          pool.bytes = options.bytes;
          FillPool(batches, n == 0 ? NanoBatch::kFirst : NanoBatch::kSecond, pool);
          const DisaggregationPlan plan = PlanDisaggregation(pool, cost, options.plan);
          expected[n] = MakeServerExchange(pool, plan, rank, options.has_residents);
          ASSERT_EQ(NumbersOf(layer.nano[n]), NumbersOf(expected[n])) << "layer " << number;
          ASSERT_EQ(layer.nano[n].planned_seconds, plan.load[static_cast<size_t>(rank)]);
          double sum = 0, largest = 0;
          for (const double load : plan.load) {
            sum += load;
            largest = std::max(largest, load);
          }
          heaviest += largest;
          mean += sum / shape.num_ranks();
        }
        ASSERT_NEAR(layer.heaviest_load, heaviest, 1e-12 * heaviest);
        ASSERT_NEAR(layer.mean_load, mean, 1e-12 * mean);
        int64_t first_rows = 0;
        for (const PooledBatch& batch : batches) {
          for (size_t i = 0; i < batch.ranks.size(); ++i) {
            if (batch.ranks[i] != rank) continue;
            first_rows = RowsOfFirstHalf(
                SequenceLayout::Make(SequenceSplit::kHalves, batch.cu_seqlens, shape.mesh.cp),
                static_cast<int>(i));
          }
        }
        KeyGradientList sums[2];
        KeyGradientSums(expected[0], expected[1], first_rows, sums[0], sums[1]);
        for (int n = 0; n < 2; ++n) ASSERT_EQ(NumbersOf(layer.sums[n]), NumbersOf(sums[n]));
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
