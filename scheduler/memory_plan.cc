#include "scheduler/memory_plan.h"

#include <algorithm>

namespace evenkeel {
namespace {

// Columns (values a token) of what core attention's backward pass needs besides its input.
int64_t AttentionWidth(const LayerShape& layer) {
  return layer.projection_width + layer.out_width + (layer.has_lse ? layer.num_heads : 0);
}

// Columns of what a layer keeps between forward and backward, its output included.
int64_t KeptWidth(const ModelShape& shape, const LayerShape& layer, RecomputePlan recompute) {
  int64_t width = shape.hidden_size;
  if (recompute != RecomputePlan::kLayer) width += AttentionWidth(layer);
  if (recompute == RecomputePlan::kNone) width += shape.hidden_size + 2 * layer.intermediate_size;
  return width;
}

// Elements alive at the peak of a layer's backward pass besides what was kept.
int64_t BackwardElements(const ModelShape& shape, const LayerShape& layer, int64_t tokens,
                         RecomputePlan recompute, int64_t chunk) {
  // For all tokens, from the start to the end of the layer: the gradient of the projection.
  int64_t width = layer.projection_width;
  if (recompute == RecomputePlan::kLayer) width += AttentionWidth(layer);
  // The output projection and the feed-forward, a chunk of tokens at a time. Intermediate: hidden,
  // its gradient, and the gradients of its two branches; hidden: norm and its gradient; out: what
  // enters the projection.
  int64_t chunk_width = layer.out_width + 2 * shape.hidden_size + 4 * layer.intermediate_size;
  if (layer.gated) chunk_width += layer.out_width;
  if (recompute != RecomputePlan::kNone) {
    chunk_width += shape.hidden_size + 2 * layer.intermediate_size;
  }
  // Core attention, for all tokens at once: q and k and their gradients where they are apart from
  // the projection's, then two values a head and token of softmax, or q before it is widened.
  int64_t core_width = (layer.widens_qk ? 2 : 1) * layer.copied_qk_width;
  if (layer.has_lse) core_width += 2 * layer.num_heads;
  if (layer.widens_qk) core_width += layer.out_width;
  const int64_t pieces = std::max(tokens * core_width, chunk * chunk_width);
  return std::max(tokens * (width + layer.out_width) + pieces,
                  tokens * width + 2 * chunk * shape.hidden_size);
}

}  // namespace

MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, int64_t element_bytes,
                              RecomputePlan recompute, int64_t token_chunk) {
  MemoryPlan plan;
  plan.weights = plan.gradients = shape.num_parameters * element_bytes;
  plan.optimizer = 2 * plan.weights;
  const int64_t chunk = std::min(token_chunk, tokens);
  // The embedding's output and the gradient of the stream, then what each layer adds; the backward
  // pass gives a layer's back before it goes on to the layer below.
  int64_t kept = shape.rotary_size + (shape.keeps_embedding ? 3 : 2) * shape.hidden_size;
  int64_t peak = 0;
  for (const LayerShape& layer : shape.layers) {
    kept += KeptWidth(shape, layer, recompute);
    peak = std::max(peak, tokens * kept + BackwardElements(shape, layer, tokens, recompute, chunk));
  }
  plan.activations = kept * tokens * element_bytes;
  // Logits exist for as many tokens as 8 Mi elements hold; the head's input and its gradient too.
  const int64_t head_rows =
      std::min(tokens, std::clamp<int64_t>((int64_t{1} << 23) / shape.vocab_size, 16, token_chunk));
  const int64_t head = head_rows * (shape.vocab_size + 2 * shape.hidden_size);
  plan.workspace = std::max(peak - kept * tokens, head) * element_bytes;
  return plan;
}

}  // namespace evenkeel
