// A step's disaggregated attention, worked out before the step runs: for each tick of the pipeline,
// which server computes what in each nano-batch. Every rank makes the same plans from the lengths
// of the batch and keeps its own part. Pure but for what Prepare puts on a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "attention/server_exchange.h"
#include "parallel/mesh.h"
#include "parallel/phase_schedule.h"
#include "parallel/sequence_layout.h"
#include "scheduler/attention_cost.h"
#include "scheduler/disaggregation_plan.h"

namespace evenkeel {

// Who is in a pool: all ranks of one tensor-parallel place, in the order of pp, dp, cp, and then
// dedicated servers.
struct PoolShape {
  MeshShape mesh;
  std::vector<int64_t> softmax_layers;  // of each pipeline stage
  int num_dedicated = 0;
  SequenceSplit split = SequenceSplit::kHalves;  // see PooledBatch

  int num_owners() const { return mesh.pp * mesh.dp * mesh.cp; }
  int num_ranks() const { return num_owners() + num_dedicated; }
  int RankOf(int pp, int dp, int cp) const { return (pp * mesh.dp + dp) * mesh.cp + cp; }
};

struct PoolPlanOptions {
  AttentionCost forward = AttentionCost::PerPair(1), backward = AttentionCost::PerPair(1);
  DisaggregationOptions plan;
  AttentionTokenBytes bytes;
  std::vector<double> speed;     // [ranks of the pool]
  bool costs_are_times = false;  // of the costs above: seconds, not (query, key) pairs
  bool has_residents = true;     // see MakeServerExchange
};

// One softmax layer of a tick, the same for all layers in which the same stages take part. Nano
// batch 0 is the first.
struct PoolLayer {
  ServerExchange nano[2];
  KeyGradientList sums[2];  // of rows of the first and of the second nano-batch
  // Sums over the two nano-batches, per speed: of the heaviest rank of each, and of the mean of
  // those that serve.
  double heaviest_load = 0;
  double mean_load = 0;

  // Made by Prepare.
  RowSegments segments[2];
  Positions terms[2];
};

struct PoolTick {
  PhaseTick tick;
  // Layers by their number in the tick (in a backward tick counted from the end): which of
  // `layers`. As many as the stage with the most softmax layers has.
  std::vector<int> layer_of;
  std::vector<std::unique_ptr<PoolLayer>> layers;

  const PoolLayer& layer(size_t number) const {
    return *layers[static_cast<size_t>(layer_of[number])];
  }
};

struct PoolStep {
  std::vector<PoolTick> ticks;
  double planning_seconds = 0;
};

// `cu_seqlens[replica][micro_batch]` of all data-parallel replicas, which have equally many
// micro-batches. Returns the part of `rank` of the pool.
PoolStep PlanPoolStep(const PoolShape& shape, const PoolPlanOptions& options,
                      absl::Span<const std::vector<std::vector<int64_t>>> cu_seqlens, int rank);

// What is on a GPU lives in the context's arena.
void Prepare(const OpContext& context, const TaskHeads& heads, PoolTick& tick);

}  // namespace evenkeel
