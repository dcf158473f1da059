#include "attention/pool_step.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_format.h"
#include "parallel/sequence_layout.h"
#include "scheduler/pool_layout.h"

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

class TickPlanner {
 public:
  TickPlanner(const PoolShape& shape, const PoolPlanOptions& options,
              absl::Span<const std::vector<std::vector<int64_t>>> cu_seqlens, int rank)
      : shape_(shape), options_(options), cu_seqlens_(cu_seqlens), rank_(rank) {
    pool_.num_ranks = shape.num_ranks();
    pool_.speed = options.speed;
    pool_.bytes = options.bytes;
  }

  PoolTick Plan(const PhaseTick& tick) {
    PoolTick planned;
    planned.tick = tick;
    const int64_t most =
        *std::max_element(shape_.softmax_layers.begin(), shape_.softmax_layers.end());
    // Layer `number` of the tick is there on stages with more than so many.
    for (int64_t number = 0; number < most; ++number) {
      const auto count =
          std::count(shape_.softmax_layers.begin(), shape_.softmax_layers.end(), number);
      if (number == 0 || count > 0) planned.layers.push_back(PlanLayer(tick, number));
      planned.layer_of.push_back(static_cast<int>(planned.layers.size()) - 1);
    }
    return planned;
  }

 private:
  std::vector<PooledBatch> BatchesOf(const PhaseTick& tick, int64_t number) const {
    const MeshShape& mesh = shape_.mesh;
    const auto micro_batches = static_cast<int64_t>(cu_seqlens_.front().size());
    std::vector<PooledBatch> batches;
    for (int pp = 0; pp < mesh.pp; ++pp) {
      const int64_t micro_batch = MicroBatchAt(tick, mesh.pp, micro_batches, pp);
      if (micro_batch < 0 || shape_.softmax_layers[static_cast<size_t>(pp)] <= number) continue;
      for (int dp = 0; dp < mesh.dp; ++dp) {
        PooledBatch batch;
        batch.cu_seqlens = cu_seqlens_[static_cast<size_t>(dp)][static_cast<size_t>(micro_batch)];
        batch.split = shape_.split;
        for (int cp = 0; cp < mesh.cp; ++cp) batch.ranks.push_back(shape_.RankOf(pp, dp, cp));
        batches.push_back(std::move(batch));
      }
    }
    return batches;
  }

  std::unique_ptr<PoolLayer> PlanLayer(const PhaseTick& tick, int64_t number) {
    auto layer = std::make_unique<PoolLayer>();
    const std::vector<PooledBatch> batches = BatchesOf(tick, number);
    const AttentionCost& cost =
        tick.phase == PipelinePhase::kForward ? options_.forward : options_.backward;
    for (int n = 0; n < 2; ++n) {
      FillPool(batches, n == 0 ? NanoBatch::kFirst : NanoBatch::kSecond, pool_);
      const DisaggregationPlan plan = PlanDisaggregation(pool_, cost, options_.plan);
      ServerExchange& exchange = layer->nano[n];
      exchange = MakeServerExchange(pool_, plan, rank_, options_.has_residents);
      exchange.label =
          options_.costs_are_times
              ? absl::StrFormat("attend, planned %.3f ms", exchange.planned_seconds * 1e3)
              : absl::StrFormat("attend, planned %.0f pairs", exchange.planned_seconds);
      AddLoads(options_.speed, plan.load, *layer);
    }
    int64_t first_rows = 0;
    for (const PooledBatch& batch : batches) {
      const auto at = std::find(batch.ranks.begin(), batch.ranks.end(), rank_);
      if (at == batch.ranks.end()) continue;
      const auto layout =
          SequenceLayout::Make(batch.split, batch.cu_seqlens, static_cast<int>(batch.ranks.size()));
      const auto place = static_cast<int>(at - batch.ranks.begin());
      first_rows = batch.split == SequenceSplit::kHalves
                       ? RowsOfFirstHalf(layout, place)
                       : layout.rows()[static_cast<size_t>(place)];
    }
    KeyGradientSums(layer->nano[0], layer->nano[1], first_rows, layer->sums[0], layer->sums[1]);
    return layer;
  }

  const PoolShape& shape_;
  const PoolPlanOptions& options_;
  absl::Span<const std::vector<std::vector<int64_t>>> cu_seqlens_;
  int rank_;
  AttentionPool pool_;
};

}  // namespace

PoolStep PlanPoolStep(const PoolShape& shape, const PoolPlanOptions& options,
                      absl::Span<const std::vector<std::vector<int64_t>>> cu_seqlens, int rank) {
  const auto begin = std::chrono::steady_clock::now();
  PoolStep step;
  TickPlanner planner(shape, options, cu_seqlens, rank);
  const auto micro_batches = static_cast<int64_t>(cu_seqlens.front().size());
  for (const PhaseTick& tick : SamePhaseTicks(shape.mesh.pp, micro_batches)) {
    step.ticks.push_back(planner.Plan(tick));
  }
  step.planning_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return step;
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
