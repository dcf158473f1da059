#include "scheduler/core_memory.h"

#include <algorithm>

namespace evenkeel {
namespace {

int64_t BackwardScratch(const LayerShape& layer, int64_t queries, int64_t heads,
                        const ComputeShape& compute) {
  if (!layer.has_lse) return 0;
  if (compute.is_gpu) return queries * heads * (4 * layer.qk_size + 8);
  return 2 * queries * heads * compute.element_bytes;
}

// Keys and values packed, and, until then, mine and all in the order of ranks.
struct GatheredBytes {
  int64_t packed = 0;
  int64_t meanwhile = 0;
};

GatheredBytes Gathered(const LayerShape& layer, const MicroBatchTokens& tokens, int64_t mine,
                       const ComputeShape& compute) {
  const int64_t row = layer.kv_width() * compute.element_bytes;
  return {tokens.all * row, (tokens.all + mine) * row};
}

int64_t RingRows(const MicroBatchTokens& tokens) {
  return *std::max_element(tokens.rows.begin(), tokens.rows.end());
}

// A rank's share of the heads with kUlysses, and the rows an exchange has buffers for: the same
// tokens by rank, in the order of ranks and packed.
struct UlyssesSizes {
  UlyssesSizes(const LayerShape& layer, const RankLayout& layout, const MicroBatchTokens& tokens)
      : q_heads(std::max<int64_t>(1, layer.num_heads / layout.mesh.cp)),
        kv_heads(std::max<int64_t>(1, layer.num_kv_heads / layout.mesh.cp)),
        rows(layout.mesh.cp * tokens.mine(layout) + 2 * tokens.all),
        inputs(q_heads * layer.qk_size + kv_heads * (layer.qk_size + layer.v_size)),
        out(q_heads * layer.v_size) {}
  int64_t q_heads, kv_heads, rows;
  int64_t inputs, out;  // columns
};

// What meets in an exchange of states: this rank's in one more buffer, or all ranks'.
int64_t StateBuffers(const RankLayout& layout, int64_t mine, int64_t all) {
  return layout.context.states == StateExchange::kScan ? mine : all;
}

}  // namespace

int64_t CoreBackwardScratch(const LayerShape& layer, int64_t queries, const ComputeShape& compute) {
  return BackwardScratch(layer, queries, layer.num_heads, compute);
}

int64_t CoreForwardBytes(const LayerShape& layer, const RankLayout& layout,
                         const MicroBatchTokens& tokens, const ComputeShape& compute) {
  if (layout.mesh.cp == 1) return 0;
  const int64_t mine = tokens.mine(layout);
  const int64_t element = compute.element_bytes, wide = compute.wide_bytes;
  if (layer.is_linear) {
    const int64_t travelling = StateBuffers(layout, tokens.pieces_after, tokens.all_pieces_after);
    return (tokens.pieces_after + travelling) * layer.state_size() * wide;
  }
  if (layer.block_size > 0 || layout.context.softmax == SoftmaxExchange::kGather) {
    const GatheredBytes gathered = Gathered(layer, tokens, mine, compute);
    return gathered.packed + gathered.meanwhile;
  }
  if (layout.context.softmax == SoftmaxExchange::kRing) {
    return 2 * RingRows(tokens) * layer.kv_width() * element +
           mine * (layer.out_width * (wide + element) + layer.num_heads * wide);
  }
  const UlyssesSizes sizes(layer, layout, tokens);
  return sizes.rows * ((sizes.inputs + sizes.out) * element + sizes.q_heads * wide);
}

int64_t CoreBackwardBytes(const LayerShape& layer, const RankLayout& layout,
                          const MicroBatchTokens& tokens, const ComputeShape& compute) {
  const int64_t mine = tokens.mine(layout);
  const int64_t element = compute.element_bytes, wide = compute.wide_bytes;
  const int64_t scratch = BackwardScratch(layer, mine, layer.num_heads, compute);
  if (layout.mesh.cp == 1) return scratch;
  if (layer.is_linear) {
    const int64_t travelling = StateBuffers(layout, tokens.pieces_before, tokens.all_pieces_before);
    return (tokens.pieces_before + tokens.pieces_after + travelling) * layer.state_size() * wide;
  }
  if (layer.block_size > 0 || layout.context.softmax == SoftmaxExchange::kGather) {
    const GatheredBytes gathered = Gathered(layer, tokens, mine, compute);
    const int64_t row = layer.kv_width() * (layer.is_relu() ? element : wide);
    const int64_t gradients = tokens.all * row, on_the_way = (tokens.all + mine) * row;
    return gathered.packed +
           std::max(gathered.meanwhile, gradients + std::max(scratch, on_the_way));
  }
  if (layout.context.softmax == SoftmaxExchange::kRing) {
    return 2 * RingRows(tokens) * layer.kv_width() * (element + wide) +
           mine * layer.num_heads * layer.qk_size * (wide + element) + scratch;
  }
  const UlyssesSizes sizes(layer, layout, tokens);
  return sizes.rows * ((2 * sizes.inputs + 2 * sizes.out) * element + sizes.q_heads * wide) +
         BackwardScratch(layer, tokens.all, sizes.q_heads, compute);
}

}  // namespace evenkeel
