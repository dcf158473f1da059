#include "scheduler/tick_plan.h"

#include <algorithm>
#include <utility>

namespace evenkeel {
namespace {

PlannedLayer PlanLayer(const PoolShape& shape, const TickPlanOptions& options,
                       ReplicaBatches cu_seqlens, const PhaseTick& tick, int64_t number) {
  PlannedLayer layer;
  layer.batches = BatchesOfTick(shape, cu_seqlens, tick, number + 1);
  const AttentionCost& cost =
      tick.phase == PipelinePhase::kForward ? options.forward : options.backward;
  for (int n = 0; n < 2; ++n) {
    auto& [pool, plan] = layer.nano[n];
    pool.num_ranks = shape.num_ranks();
    pool.speed = options.speed;
    pool.bytes = options.bytes;
    FillPool(layer.batches, n == 0 ? NanoBatch::kFirst : NanoBatch::kSecond, pool);
    plan =
        options.balances ? PlanDisaggregation(pool, cost, options.plan) : PlanInPlace(pool, cost);
  }
  return layer;
}

}  // namespace

std::vector<PooledBatch> BatchesOfTick(const PoolShape& shape, ReplicaBatches cu_seqlens,
                                       const PhaseTick& tick, int64_t least_layers) {
  const MeshShape& mesh = shape.mesh;
  const auto micro_batches = static_cast<int64_t>(cu_seqlens.front().size());
  std::vector<PooledBatch> batches;
  for (int pp = 0; pp < mesh.pp; ++pp) {
    const TickPass pass = PassAt(tick, mesh.pp, shape.num_chunks(), micro_batches, pp);
    if (!pass.exists() || shape.SoftmaxLayers(pp, pass.chunk) < least_layers) continue;
    for (int dp = 0; dp < mesh.dp; ++dp) {
      PooledBatch batch;
      batch.cu_seqlens = cu_seqlens[static_cast<size_t>(dp)][static_cast<size_t>(pass.micro_batch)];
      batch.split = shape.split;
      for (int cp = 0; cp < mesh.cp; ++cp) batch.ranks.push_back(shape.RankOf(pp, dp, cp));
      batches.push_back(std::move(batch));
    }
  }
  return batches;
}

PlannedTick PlanTick(const PoolShape& shape, const TickPlanOptions& options,
                     ReplicaBatches cu_seqlens, const PhaseTick& tick) {
  PlannedTick planned;
  const auto micro_batches = static_cast<int64_t>(cu_seqlens.front().size());
  std::vector<int64_t> counts;
  int64_t most = 0;
  for (int pp = 0; pp < shape.mesh.pp; ++pp) {
    const TickPass pass = PassAt(tick, shape.mesh.pp, shape.num_chunks(), micro_batches, pp);
    if (!pass.exists()) continue;
    counts.push_back(shape.SoftmaxLayers(pp, pass.chunk));
    most = std::max(most, counts.back());
  }
  // Layer `number` of the tick is there in chunks with more than so many.
  for (int64_t number = 0; number < most; ++number) {
    if (number == 0 || std::count(counts.begin(), counts.end(), number) > 0) {
      planned.layers.push_back(PlanLayer(shape, options, cu_seqlens, tick, number));
    }
    planned.layer_of.push_back(static_cast<int>(planned.layers.size()) - 1);
  }
  return planned;
}

}  // namespace evenkeel
