// The plans of a pipeline tick with disaggregated attention: which batches take part in each
// softmax layer, and which server computes what of each nano-batch. A run executes them
// (attention/pool_step.h), the simulator times them (scheduler/disaggregated_step.h). Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "parallel/mesh.h"
#include "parallel/phase_schedule.h"
#include "parallel/sequence_layout.h"
#include "scheduler/attention_cost.h"
#include "scheduler/disaggregation_plan.h"
#include "scheduler/pool_layout.h"

namespace evenkeel {

// Who is in a pool: all ranks of one tensor-parallel place, in the order of pp, dp, cp, and then
// dedicated servers.
struct PoolShape {
  MeshShape mesh;
  // Of each stage of the model in order: rank `pp` has the stages pp, pp + mesh.pp, ..., a chunk
  // each.
  std::vector<int64_t> softmax_layers;
  int num_dedicated = 0;
  SequenceSplit split = SequenceSplit::kHalves;  // see PooledBatch

  int num_chunks() const { return static_cast<int>(softmax_layers.size()) / mesh.pp; }
  int64_t SoftmaxLayers(int pp, int chunk) const {
    return softmax_layers[static_cast<size_t>(chunk * mesh.pp + pp)];
  }
  int num_owners() const { return mesh.pp * mesh.dp * mesh.cp; }
  int num_ranks() const { return num_owners() + num_dedicated; }
  int RankOf(int pp, int dp, int cp) const { return (pp * mesh.dp + dp) * mesh.cp + cp; }
};

struct TickPlanOptions {
  AttentionCost forward = AttentionCost::PerPair(1), backward = AttentionCost::PerPair(1);
  DisaggregationOptions plan;
  AttentionTokenBytes bytes;
  std::vector<double> speed;  // [ranks of the pool]
  bool balances = true;       // false: every owner computes its own queries (PlanInPlace)
};

struct PlannedNano {
  AttentionPool pool;
  DisaggregationPlan plan;
};

// One softmax layer of a tick, the same for all layers in which the same stages take part.
struct PlannedLayer {
  std::vector<PooledBatch> batches;
  PlannedNano nano[2];  // 0 is the first
};

struct PlannedTick {
  // Layers by their number in the tick (in a backward tick counted from the end): which of
  // `layers`. As many as the chunk with the most softmax layers has, of those with a pass.
  std::vector<int> layer_of;
  std::vector<PlannedLayer> layers;
};

// Lengths of all documents as prefix sums, [replica][micro_batch][D + 1]; replicas have equally
// many micro-batches.
using ReplicaBatches = absl::Span<const std::vector<std::vector<int64_t>>>;

// Of ranks with a pass in the tick through a chunk of `least_layers` softmax layers or more.
std::vector<PooledBatch> BatchesOfTick(const PoolShape& shape, ReplicaBatches cu_seqlens,
                                       const PhaseTick& tick, int64_t least_layers);

PlannedTick PlanTick(const PoolShape& shape, const TickPlanOptions& options,
                     ReplicaBatches cu_seqlens, const PhaseTick& tick);

}  // namespace evenkeel
