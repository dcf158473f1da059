#include "models/token_layout.h"

#include <algorithm>

#include "attention/block_attention.h"

namespace evenkeel {
namespace {

bool HasLinear(const ModelConfig& config) {
  return config.has_kind(LayerKind::kLightning) || config.has_kind(LayerKind::kNormAttention);
}

// What depends on the tokens alone, not on documents.
void PlanTokens(const OpContext& context, const ModelConfig& config,
                absl::Span<const int64_t> positions, AxisComm* tp, int64_t cut,
                TokenLayout& layout) {
  const auto tokens = static_cast<int64_t>(positions.size());
  const ChunkLimits chunks = TokenChunks(context.device(), tp == nullptr);
  layout.shards = TokenShards(tokens, chunks.RowsFor(std::max(cut, tokens - cut)), tp, cut);
  layout.positions = Mirror(context, Positions(positions));
  if (!config.has_kind(LayerKind::kSoftmax)) return;
  const Shape shape{tokens, config.head_size() / 2};
  const auto allocate = [&] {
    return context.arena.Allocate(context.wide_dtype(), shape, MemoryPurpose::kActivations);
  };
  TensorView cos = allocate(), sin = allocate();
  layout.rope_cos = cos;
  layout.rope_sin = sin;
  if (tokens == 0) return;
  RopeTable(context, layout.positions, RopeInverseFrequencies(config.rope, config.head_size()),
            RopeAttentionFactor(config.rope), cos, sin);
}

// Documents that lie on this rank. `has_softmax`: and their softmax attention too.
void PlanDocuments(const OpContext& context, const ModelConfig& config,
                   absl::Span<const int64_t> cu_seqlens, AxisComm* tp, bool has_softmax,
                   bool backward, TokenLayout& layout) {
  layout.sequences = cu_seqlens;
  if (HasLinear(config)) {
    layout.sequences =
        PlanSequences(context, cu_seqlens, config.num_heads / DegreeOf(tp), config.head_size());
  }
  const TaskHeads heads = {config.head_size(), config.num_heads / config.kv_heads()};
  if (config.has_kind(LayerKind::kDiagAttention)) {
    layout.block_list = TasksOfBlocks(cu_seqlens, config.block_size);
    layout.block_tasks = PlanTasks(context, layout.block_list, heads, backward, /*relu=*/true);
  }
  if (has_softmax) {
    layout.task_list = TasksOfDocuments(cu_seqlens);
    layout.tasks = PlanTasks(context, layout.task_list, heads, backward);
  }
}

}  // namespace

TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            absl::Span<const int64_t> cu_seqlens,
                            absl::Span<const int64_t> positions, bool backward) {
  TokenLayout layout;
  PlanTokens(context, config, positions, nullptr, /*cut=*/0, layout);
  PlanDocuments(context, config, cu_seqlens, nullptr, config.has_kind(LayerKind::kSoftmax),
                backward, layout);
  return layout;
}

TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            const PackedBatch& batch, const TokenAxes& axes, bool backward,
                            PackedBatch* shard) {
  TokenLayout layout;
  const bool is_pooled = axes.strategy.softmax == SoftmaxExchange::kDisaggregated;
  // Attention servers compute it otherwise.
  const bool has_softmax = config.has_kind(LayerKind::kSoftmax) && !is_pooled;
  const bool has_halves = axes.strategy.split == SequenceSplit::kHalves;
  if (axes.cp == nullptr) {
    PlanTokens(context, config, batch.positions, axes.tp,
               !is_pooled   ? 0
               : has_halves ? FirstHalf(batch.num_tokens())
                            : batch.num_tokens(),
               layout);
    if (!batch.tokens.empty()) {
      PlanDocuments(context, config, batch.cu_seqlens, axes.tp, has_softmax, backward, layout);
    }
    return layout;
  }
  ContextPlanOptions options;
  options.has_softmax = has_softmax;
  options.has_linear = HasLinear(config);
  if (config.has_kind(LayerKind::kDiagAttention)) options.block_size = config.block_size;
  options.head_size = config.head_size();
  options.num_heads = config.num_heads / DegreeOf(axes.tp);
  options.group = config.num_heads / config.kv_heads();
  options.backward = backward;
  layout.context = MakeContextPlan(context, *axes.cp, axes.strategy, batch.cu_seqlens, options);
  *shard = TakeShard(batch, layout.context->layout, axes.cp->rank());
  const int64_t cut = !is_pooled   ? 0
                      : has_halves ? RowsOfFirstHalf(layout.context->layout, axes.cp->rank())
                                   : shard->num_tokens();
  PlanTokens(context, config, shard->positions, axes.tp, cut, layout);
  return layout;
}

}  // namespace evenkeel
