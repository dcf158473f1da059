#include "scheduler/memory_plan.h"

#include <algorithm>

namespace evenkeel {
namespace {

// Columns (values a token) of what a layer keeps besides its input.
int64_t KeptWidth(const ModelShape& shape, const LayerShape& layer, RecomputePlan recompute) {
  if (recompute == RecomputePlan::kLayer) return 0;
  int64_t width = layer.projection_width + layer.out_width + (layer.has_lse ? layer.num_heads : 0);
  if (recompute == RecomputePlan::kNone) width += shape.hidden_size + 2 * layer.intermediate_size;
  return width;
}

// Columns alive at the peak of a layer's backward pass besides what was kept.
int64_t BackwardWidth(const LayerShape& layer, RecomputePlan recompute) {
  int64_t width = layer.projection_width + layer.out_width + layer.copied_qk_width;
  if (layer.widens_qk) width += layer.copied_qk_width;
  if (recompute == RecomputePlan::kLayer) {
    width += layer.projection_width + layer.out_width + (layer.has_lse ? layer.num_heads : 0);
  }
  return width;
}

}  // namespace

MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, int64_t element_bytes,
                              RecomputePlan recompute, int64_t token_chunk) {
  MemoryPlan plan;
  plan.weights = plan.gradients = shape.num_parameters * element_bytes;
  plan.optimizer = 2 * plan.weights;
  int64_t kept = shape.hidden_size;  // the embedding's output, then each layer's
  bool rotates = false;
  int64_t peak = 0;
  for (const LayerShape& layer : shape.layers) {
    kept += shape.hidden_size + KeptWidth(shape, layer, recompute);
    peak = std::max(peak, kept + BackwardWidth(layer, recompute));
    rotates = rotates || (!layer.is_linear && layer.block_size == 0);
  }
  const int64_t rotary =
      rotates && !shape.layers.empty() ? shape.layers.back().v_size * tokens * element_bytes : 0;
  plan.activations = kept * tokens * element_bytes + rotary;
  const int64_t chunk = std::min(token_chunk, tokens);
  int64_t chunk_width = 0;
  for (const LayerShape& layer : shape.layers) {
    // hidden, its gradient, both branches, their gradient, four rows of the stream, output norm.
    chunk_width = std::max(
        chunk_width, 6 * layer.intermediate_size + 4 * shape.hidden_size + 2 * layer.out_width);
  }
  const int64_t head = std::min(tokens, std::clamp<int64_t>((int64_t{1} << 23) / shape.vocab_size,
                                                            16, token_chunk)) *
                       (shape.vocab_size + 2 * shape.hidden_size);
  plan.workspace = std::max((peak - kept) * tokens + chunk * chunk_width, head) * element_bytes;
  return plan;
}

}  // namespace evenkeel
