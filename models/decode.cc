#include "models/decode.h"

#include <algorithm>
#include <utility>

#include "attention/block_attention.h"
#include "attention/lightning_attention.h"
#include "attention/softmax_attention.h"
#include "models/model_head.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {
namespace {

// A prompt is fed in pieces of this many tokens, so that its activations stay small.
constexpr int64_t kPrefillChunk = 1024;

// Tasks of queries [begin, end) of a sequence whose keys [0, end) are cached from row 0 on, where a
// query sees only the keys of its own block of `block` tokens.
std::vector<AttentionTask> BlockTasks(int64_t begin, int64_t end, int64_t block) {
  std::vector<AttentionTask> tasks;
  for (int64_t at = begin; at < end;) {
    const int64_t block_begin = at / block * block;
    const int64_t stop = std::min(end, block_begin + block);
    tasks.push_back({at - begin, stop - at, block_begin, stop - block_begin});
    at = stop;
  }
  return tasks;
}

}  // namespace

absl::StatusOr<DecodeCache> DecodeCache::Create(const OpContext& context, const Model& model,
                                                int64_t capacity, MemoryTracker& tracker) {
  DecodeCache cache;
  cache.capacity_ = capacity;
  const auto create = [&](DType dtype, Shape shape) {
    return Tensor::Create(dtype, shape, MemoryPurpose::kCache, tracker, context.device());
  };
  for (const BlockSpec& spec : model.block_specs()) {
    LayerCache layer;
    if (spec.core == CoreKind::kLightning) {
      EK_ASSIGN_OR_RETURN(
          layer.state,
          create(context.wide_dtype(), {1, spec.num_heads, spec.core_qk_size(), spec.head_size}));
    } else {
      const Shape shape{capacity, spec.num_kv_heads, spec.head_size};
      EK_ASSIGN_OR_RETURN(layer.k, create(context.dtype, shape));
      EK_ASSIGN_OR_RETURN(layer.v, create(context.dtype, shape));
    }
    cache.layers_.push_back(std::move(layer));
  }
  return cache;
}

void DecodeStep(const OpContext& context, Model& model, absl::Span<const int32_t> tokens,
                DecodeCache& cache, TensorView logits) {
  const ModelConfig& config = model.config();
  const auto total = static_cast<int64_t>(tokens.size());
  EK_CHECK(total > 0 && cache.length_ + total <= cache.capacity_);
  if (total > kPrefillChunk) {
    for (int64_t at = 0; at < total; at += kPrefillChunk) {
      DecodeStep(context, model, tokens.subspan(static_cast<size_t>(at), kPrefillChunk), cache,
                 logits);
    }
    return;
  }
  const ArenaScope scope(context.arena);
  const int64_t begin = cache.length_, end = begin + total;
  const std::vector<int64_t> cu_seqlens = {0, total};
  std::vector<int64_t> positions(tokens.size());
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = begin + static_cast<int64_t>(i);
  const TokenLayout layout =
      MakeTokenLayout(context, config, cu_seqlens, positions, /*backward=*/false);

  const auto allocate = [&](Shape shape) {
    return context.arena.Allocate(context.dtype, shape, MemoryPurpose::kActivations);
  };
  TensorView x = allocate({total, config.hidden_size}), y = allocate({total, config.hidden_size});
  EmbedTokens(context, config, model.AcquireEmbedding(context), tokens, x);
  for (size_t i = 0; i < model.block_specs().size(); ++i) {
    const ArenaScope layer_scope(context.arena);
    const BlockSpec& spec = model.block_specs()[i];
    DecodeCache::LayerCache& layer = cache.layers_[i];
    const auto weights = model.AcquireBlock(context, static_cast<int64_t>(i));
    BlockActivations kept;
    kept.x = x;
    kept.proj = allocate({total, spec.projection_width()});
    kept.core.out = allocate({total, spec.q_width()});
    PreAttentionForward(context, spec, weights, layout, x, TensorView(), kept.proj);
    const CoreTensors core = MakeCoreInputs(context, spec, weights, layout, kept.proj);
    const TensorView heads = kept.core.out.SplitHeads(spec.num_heads);
    if (spec.core == CoreKind::kLightning) {
      LightningAttentionForward(context, layout.sequences, spec.slopes, core.q, core.k, core.v,
                                layer.state.view(), heads, layer.state.view());
    } else {
      const TensorView k = layer.k.view().Rows(0, end), v = layer.v.view().Rows(0, end);
      Copy(context, core.k.MergeHeads(), k.Rows(begin, end).MergeHeads());
      Copy(context, core.v.MergeHeads(), v.Rows(begin, end).MergeHeads());
      const std::vector<AttentionTask> tasks = spec.core == CoreKind::kSoftmax
                                                   ? std::vector<AttentionTask>{{0, total, 0, end}}
                                                   : BlockTasks(begin, end, spec.block_size);
      if (spec.core == CoreKind::kBlockRelu) {
        ReluBlockAttentionForward(context, tasks, spec.scale, core.q, k, v, heads);
      } else {
        SoftmaxAttentionForward(
            context, tasks, spec.scale, core.q, k, v, heads,
            context.arena.Allocate(context.wide_dtype(), {total, spec.num_heads},
                                   MemoryPurpose::kActivations));
      }
    }
    PostAttentionForward(context, spec, weights, layout, kept, y);
    std::swap(x, y);
  }
  HeadLogits(context, config, model.AcquireHead(context), x.Rows(total - 1, total), logits);
  cache.length_ = end;
}

}  // namespace evenkeel
