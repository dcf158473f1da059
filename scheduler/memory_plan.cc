#include "scheduler/memory_plan.h"

#include <algorithm>
#include <vector>

#include "scheduler/pass_memory.h"
#include "scheduler/server_memory.h"
#include "scheduler/stage_order.h"
#include "scheduler/unit_traffic.h"

namespace evenkeel {
namespace {

// A GPU's own: the products' workspace, states between segments of linear attention, and what
// allocations are rounded up to. A bound, not a count.
constexpr int64_t kGpuScratchBytes = int64_t{256} << 20;

// Gradients on their way to the stage before (models/pipeline_run.h).
constexpr int64_t kOutgoingBuffers = 2;

// Weights, gradients and optimizer state, as ParameterStore and Optimizer hold them.
void PlanParameters(const ModelShape& shape, const RankLayout& layout, int64_t micro_batches,
                    const ComputeShape& compute, MemoryPlan* plan) {
  const ShardingStage stage = layout.stage();
  const RowRange last =
      OwnedRanges(shape.unit_begin, stage, layout.data_ranks(), layout.data_place()).back();
  const int64_t owned = last.to + last.count, all = shape.unit_begin.back();
  const UnitTraffic slots = UnitTrafficOf(shape, layout, micro_batches);
  plan->weights = owned * compute.wide_bytes;
  if (compute.has_copy) plan->weights += owned * compute.element_bytes;
  if (stage == ShardingStage::kOptimizer || stage == ShardingStage::kGradients) {
    plan->weights += all * compute.element_bytes;
  }
  plan->weights += slots.weight_slots * compute.element_bytes;
  if (stage == ShardingStage::kNone || stage == ShardingStage::kOptimizer) {
    plan->gradients += all * compute.wide_bytes;
  }
  if (stage != ShardingStage::kNone) plan->gradients += owned * compute.wide_bytes;
  plan->gradients += slots.gradient_slots * compute.wide_bytes;
  plan->optimizer = 2 * owned * compute.wide_bytes;
}

// Enough micro-batches that every slot of the schedule and of the parameter store is in use: more
// change nothing but how long that lasts.
int64_t FullMicroBatches(const ModelShape& shape, const RankLayout& layout) {
  return (static_cast<int64_t>(shape.chunks.size()) + 2) * layout.mesh.pp;
}

}  // namespace

MemoryPlan PlanTrainingMemory(const ModelShape& shape, const RankLayout& layout,
                              const MicroBatchTokens& tokens, int64_t micro_batches,
                              const ComputeShape& compute, RecomputePlan recompute) {
  MemoryPlan plan;
  micro_batches = std::min(micro_batches, FullMicroBatches(shape, layout));
  PlanParameters(shape, layout, micro_batches, compute, &plan);
  const auto num_chunks = static_cast<int>(shape.chunks.size());
  std::vector<PassMemory> of_chunk;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    of_chunk.push_back(PassMemoryOf(shape, chunk, layout, tokens, compute, recompute));
  }
  std::vector<PassMemory> of_slot;
  for (const PassEvent& event : PassEvents(layout.mesh, layout.coord.pp, num_chunks, micro_batches,
                                           layout.pools_attention())) {
    const auto slot = static_cast<size_t>(event.slot);
    if (slot >= of_slot.size()) of_slot.resize(slot + 1);
    const PassMemory& pass = of_chunk[static_cast<size_t>(event.chunk)];
    of_slot[slot].kept = std::max(of_slot[slot].kept, pass.kept);
    of_slot[slot].peak = std::max(of_slot[slot].peak, pass.peak);
  }
  for (const PassMemory& slot : of_slot) {
    plan.activations += slot.kept;
    plan.workspace += slot.peak - slot.kept;
  }
  if (layout.pools_attention()) {
    for (const PassMemory& pass : of_chunk) plan.attention = std::max(plan.attention, pass.pool);
  }
  // The model's first chunk sends none.
  const int64_t sent = micro_batches * (num_chunks - (shape.is_first ? 1 : 0));
  if (layout.mesh.pp > 1 && sent > 0) {
    const int64_t chunk = ChunkRows(layout, tokens, compute.token_chunks);
    const int64_t rows = StreamRows(tokens.mine(layout), chunk, layout.mesh.tp, layout.coord.tp);
    plan.workspace +=
        std::min(kOutgoingBuffers, sent) * rows * shape.hidden_size * compute.element_bytes;
  }
  if (compute.is_gpu) plan.workspace += kGpuScratchBytes;
  plan.windows = layout.window_bytes;
  return plan;
}

MemoryPlan PlanServerMemory(const ModelShape& shape, const RankLayout& layout,
                            const MicroBatchTokens& tokens, const ComputeShape& compute) {
  MemoryPlan plan;
  plan.attention = ServerBufferBytes(*shape.pooled, layout, tokens, compute, PoolRole::kDedicated);
  if (compute.is_gpu) plan.workspace = kGpuScratchBytes;
  return plan;
}

MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, const ComputeShape& compute,
                              RecomputePlan recompute) {
  MicroBatchTokens micro_batch;
  micro_batch.all = tokens;
  micro_batch.rows = {tokens};
  return PlanTrainingMemory(shape, RankLayout(), micro_batch, 1, compute, recompute);
}

}  // namespace evenkeel
