#include "launch/simulate_memory.h"

#include <algorithm>
#include <numeric>

#include "launch/parallel_config.h"
#include "models/model_shape.h"
#include "runtime/base/status_macros.h"
#include "scheduler/memory_plan.h"
#include "scheduler/pass_memory.h"
#include "scheduler/stage_order.h"

namespace evenkeel {
namespace {

MicroBatchTokens TokensOf(const SimCase& study, const SimLayout& layout) {
  const double batch = static_cast<double>(study.context * study.samples);
  double tokens = batch / (static_cast<double>(layout.pools * layout.dp * layout.cp) *
                           static_cast<double>(layout.micro_batches));
  if (layout.system == SimSystem::kBalanced || layout.system == SimSystem::kBalancedHidden) {
    tokens = std::max(tokens * kTokenSlack,
                      static_cast<double>(study.context) / static_cast<double>(layout.cp));
  }
  MicroBatchTokens counted;
  counted.all = static_cast<int64_t>(tokens);
  counted.rows = {counted.all};
  return counted;
}

// Bytes of a pass through a chunk of layers.
struct ChunkBytes {
  double kept = 0;    // until its backward pass
  double inside = 0;  // on top of that at the peak
};

ChunkBytes BytesOf(const SimCase& study, const SimLayout& layout, const ModelShape& shape,
                   int chunk, const PassMemory& pass, double tokens) {
  ChunkBytes bytes = {static_cast<double>(pass.kept), static_cast<double>(pass.peak - pass.kept)};
  if (layout.is_disaggregated() || layout.cp == 1) return bytes;
  // Gathered keys and values: of all layers, kept for the backward pass, or of one.
  const ChunkShape& layers = shape.chunks[static_cast<size_t>(chunk)];
  double all = 0, largest = 0;
  for (int64_t i = layers.begin; i < layers.end; ++i) {
    const LayerShape& layer = shape.layers[static_cast<size_t>(i)];
    if (layer.is_linear) continue;
    const auto kv = static_cast<double>(layer.kv_width() * study.element_bytes * (layout.cp - 1));
    all += kv * tokens;
    largest = std::max(largest, kv * tokens);
  }
  (layout.gathers_again ? bytes.inside : bytes.kept) += layout.gathers_again ? largest : all;
  return bytes;
}

}  // namespace

absl::StatusOr<double> LayoutBytes(const SimCase& study, const SimLayout& layout) {
  ParallelConfig parallel;
  parallel.mesh = {layout.pp, layout.pools * layout.dp * layout.cp, 1, static_cast<int>(study.tp)};
  parallel.virtual_stages = layout.virtual_stages;
  parallel.zero = ShardingStage::kOptimizer;
  EK_ASSIGN_OR_RETURN(const ParallelPlan plan,
                      PlanParallel(study.model, parallel, parallel.mesh.num_ranks()));
  const MicroBatchTokens tokens = TokensOf(study, layout);
  double most = 0;
  for (int pp = 0; pp < layout.pp; ++pp) {
    const MeshCoord coord = {pp, 0, 0, 0};
    const ModelShape shape = ShapeOf(study.model, plan.PartOf(coord));
    const RankLayout rank = plan.LayoutOf(coord);
    const ComputeShape compute =
        ComputeShapeOf(Device::kCuda, DType::kBF16, shape.vocab_size, static_cast<int>(study.tp));
    const MemoryPlan memory = PlanTrainingMemory(shape, rank, tokens, 1, compute, study.recompute);
    std::vector<ChunkBytes> of_chunk;
    for (int chunk = 0; chunk < layout.virtual_stages; ++chunk) {
      of_chunk.push_back(BytesOf(study, layout, shape, chunk,
                                 PassMemoryOf(shape, chunk, rank, tokens, compute, study.recompute),
                                 static_cast<double>(tokens.all)));
    }
    // A slot of the schedule is as large as the largest chunk that passes through it.
    std::vector<double> kept_of_slot;
    double inside = 0;
    for (const PassEvent& event : PassEvents(plan.mesh, pp, layout.virtual_stages,
                                             layout.micro_batches, layout.is_disaggregated())) {
      const auto slot = static_cast<size_t>(event.slot);
      if (slot >= kept_of_slot.size()) kept_of_slot.resize(slot + 1);
      const ChunkBytes& pass = of_chunk[static_cast<size_t>(event.chunk)];
      kept_of_slot[slot] = std::max(kept_of_slot[slot], pass.kept);
      inside = std::max(inside, pass.inside);
    }
    most = std::max(
        most,
        std::accumulate(
            kept_of_slot.begin(), kept_of_slot.end(),
            static_cast<double>(memory.weights + memory.gradients + memory.optimizer) + inside));
  }
  return most;
}

}  // namespace evenkeel
