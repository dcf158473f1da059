#include "attention/pool_step.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_format.h"

namespace evenkeel {
namespace {

void AddLoads(absl::Span<const double> speed, const std::vector<double>& load, PoolLayer& layer) {
  double most = 0, sum = 0, speeds = 0;
  for (size_t r = 0; r < load.size(); ++r) {
    if (speed[r] <= 0) continue;
    most = std::max(most, load[r] / speed[r]);
    sum += load[r];
    speeds += speed[r];
  }
  layer.heaviest_load += most;
  layer.mean_load += sum / speeds;
}

std::unique_ptr<PoolLayer> PartOf(const PlannedLayer& planned, const PoolPlanOptions& options,
                                  int rank) {
  auto layer = std::make_unique<PoolLayer>();
  for (int n = 0; n < 2; ++n) {
    const auto& [pool, plan] = planned.nano[n];
    ServerExchange& exchange = layer->nano[n];
    exchange = MakeServerExchange(pool, plan, rank, options.has_residents);
    exchange.label =
        options.costs_are_times
            ? absl::StrFormat("attend, planned %.3f ms", exchange.planned_seconds * 1e3)
            : absl::StrFormat("attend, planned %.0f pairs", exchange.planned_seconds);
    AddLoads(options.speed, plan.load, *layer);
  }
  int64_t first_rows = 0;
  for (const PooledBatch& batch : planned.batches) {
    const auto at = std::find(batch.ranks.begin(), batch.ranks.end(), rank);
    if (at == batch.ranks.end()) continue;
    first_rows = RowsOfNanos(batch, static_cast<int>(at - batch.ranks.begin()))[0];
  }
  KeyGradientSums(layer->nano[0], layer->nano[1], first_rows, layer->sums[0], layer->sums[1]);
  return layer;
}

PoolStep PlanTicks(const PoolShape& shape, const PoolPlanOptions& options,
                   ReplicaBatches cu_seqlens, absl::Span<const PhaseTick> ticks, int rank) {
  const auto begin = std::chrono::steady_clock::now();
  PoolStep step;
  for (const PhaseTick& tick : ticks) {
    PlannedTick planned = PlanTick(shape, options, cu_seqlens, tick);
    PoolTick& part = step.ticks.emplace_back();
    part.tick = tick;
    part.layer_of = std::move(planned.layer_of);
    for (const PlannedLayer& layer : planned.layers) {
      part.layers.push_back(PartOf(layer, options, rank));
    }
  }
  step.planning_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return step;
}

int64_t MicroBatches(ReplicaBatches cu_seqlens) {
  return static_cast<int64_t>(cu_seqlens.front().size());
}

}  // namespace

PoolStep PlanPoolStep(const PoolShape& shape, const PoolPlanOptions& options,
                      ReplicaBatches cu_seqlens, int rank) {
  return PlanTicks(shape, options, cu_seqlens,
                   SamePhaseTicks(shape.mesh.pp, shape.num_chunks(), MicroBatches(cu_seqlens)),
                   rank);
}

PoolStep PlanPoolForward(const PoolShape& shape, const PoolPlanOptions& options,
                         ReplicaBatches cu_seqlens, int rank) {
  return PlanTicks(shape, options, cu_seqlens,
                   ForwardTicks(shape.mesh.pp, shape.num_chunks(), MicroBatches(cu_seqlens)), rank);
}

void Prepare(const OpContext& context, const TaskHeads& heads, PoolTick& tick) {
  const bool backward = tick.tick.phase == PipelinePhase::kBackward;
  for (const auto& layer : tick.layers) {
    for (int n = 0; n < 2; ++n) {
      Prepare(context, heads, backward, layer->nano[n]);
      layer->segments[n] = Mirror(context, RowSegments(layer->sums[n].segments));
      layer->terms[n] = Mirror(context, Positions(layer->sums[n].terms));
    }
  }
}

}  // namespace evenkeel
