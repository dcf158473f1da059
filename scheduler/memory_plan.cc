#include "scheduler/memory_plan.h"

#include <algorithm>

namespace evenkeel {
namespace {

// A GPU's own: the products' workspace, states between segments of linear attention, and what
// allocations are rounded up to. A bound, not a count.
constexpr int64_t kGpuScratchBytes = int64_t{256} << 20;

// Bytes a token of what core attention's backward pass needs besides its input.
int64_t AttentionBytes(const LayerShape& layer, const ComputeShape& compute) {
  return (layer.projection_width + layer.out_width) * compute.element_bytes +
         (layer.has_lse ? layer.num_heads * compute.wide_bytes : 0);
}

// Bytes a token of what a layer keeps between forward and backward, its output included.
int64_t KeptBytes(const ModelShape& shape, const LayerShape& layer, const ComputeShape& compute,
                  RecomputePlan recompute) {
  int64_t bytes = shape.hidden_size * compute.element_bytes;
  if (recompute != RecomputePlan::kLayer) bytes += AttentionBytes(layer, compute);
  if (recompute == RecomputePlan::kNone) {
    // A GPU keeps both norms as well.
    const int64_t streams = compute.is_gpu ? 3 : 1;
    bytes += (streams * shape.hidden_size + 2 * layer.intermediate_size) * compute.element_bytes;
  }
  return bytes;
}

// Bytes a token of core attention's backward pass: q and k and their gradients where they are apart
// from the projection's; on the CPU two values a head of softmax, or q before it is widened; on a
// GPU dq in float32 and two statistics a head.
int64_t CoreBytes(const LayerShape& layer, const ComputeShape& compute) {
  int64_t columns = (layer.widens_qk ? 2 : 1) * layer.copied_qk_width;
  if (compute.is_gpu) {
    const int64_t softmax = layer.has_lse ? layer.num_heads * (4 * layer.qk_size + 8) : 0;
    return columns * compute.element_bytes + softmax;
  }
  if (layer.has_lse) columns += 2 * layer.num_heads;
  if (layer.widens_qk) columns += layer.out_width;
  return columns * compute.element_bytes;
}

// Bytes alive at the peak of a layer's backward pass besides what was kept.
int64_t BackwardBytes(const ModelShape& shape, const LayerShape& layer, int64_t tokens,
                      const ComputeShape& compute, RecomputePlan recompute) {
  const int64_t chunk = std::min(compute.token_chunk, tokens);
  // For all tokens, from the start to the end of the layer: the gradient of the projection.
  int64_t bytes = layer.projection_width * compute.element_bytes;
  if (recompute == RecomputePlan::kLayer) bytes += AttentionBytes(layer, compute);
  // The output projection and the feed-forward, a chunk of tokens at a time. Intermediate: hidden
  // and the gradients of its two branches; hidden: norm and its gradient; out: what enters the
  // projection, where that is not attention's output itself.
  int64_t chunk_width = 2 * shape.hidden_size + 3 * layer.intermediate_size;
  if (layer.has_output_norm) chunk_width += layer.out_width;
  if (layer.gated && !compute.is_gpu) chunk_width += layer.out_width;
  if (recompute != RecomputePlan::kNone) {
    chunk_width += shape.hidden_size + 2 * layer.intermediate_size;
  }
  const int64_t out = layer.out_width * compute.element_bytes;
  const int64_t pieces =
      std::max(tokens * CoreBytes(layer, compute), chunk * chunk_width * compute.element_bytes);
  return std::max(tokens * (bytes + out) + pieces,
                  tokens * bytes + 2 * chunk * shape.hidden_size * compute.element_bytes);
}

}  // namespace

MemoryPlan PlanTrainingMemory(const ModelShape& shape, int64_t tokens, const ComputeShape& compute,
                              RecomputePlan recompute) {
  MemoryPlan plan;
  plan.gradients = shape.num_parameters * compute.wide_bytes;
  plan.weights =
      plan.gradients + (compute.has_copy ? shape.num_parameters * compute.element_bytes : 0);
  plan.optimizer = 2 * plan.gradients;
  // The embedding's output and the gradient of the stream, then what each layer adds; the backward
  // pass gives a layer's back before it goes on to the layer below.
  int64_t kept = shape.rotary_size * compute.wide_bytes +
                 (shape.keeps_embedding ? 3 : 2) * shape.hidden_size * compute.element_bytes;
  int64_t peak = 0;
  for (const LayerShape& layer : shape.layers) {
    kept += KeptBytes(shape, layer, compute, recompute);
    peak = std::max(peak, tokens * kept + BackwardBytes(shape, layer, tokens, compute, recompute));
  }
  plan.activations = kept * tokens;
  // Logits, the head's input and its gradient; a loss a token.
  const int64_t head_rows = std::min(tokens, compute.logits_rows);
  const int64_t head =
      head_rows * (shape.vocab_size + 2 * shape.hidden_size) * compute.element_bytes +
      tokens * (compute.is_gpu ? 4 : 8);
  plan.workspace = std::max(peak - plan.activations, head);
  if (compute.is_gpu) plan.workspace += kGpuScratchBytes;
  return plan;
}

}  // namespace evenkeel
