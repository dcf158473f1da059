#include "models/model.h"

#include <algorithm>
#include <cmath>

#include "attention/block_attention.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"

namespace evenkeel {
namespace {

// Bounds the logits that exist at once: 8 Mi elements, however large the vocabulary.
int64_t HeadChunk(int64_t vocab_size) {
  return std::clamp<int64_t>((int64_t{1} << 23) / vocab_size, 16, 512);
}

double EmbeddingScale(const ModelConfig& config) {
  return config.scale_embedding ? std::sqrt(static_cast<double>(config.hidden_size)) : 1.0;
}

TensorView Allocate(const OpContext& context, Shape shape, MemoryPurpose purpose) {
  return context.arena.Allocate(context.dtype, shape, purpose);
}

// Calls body(begin, end, normed [c, C], logits [c, V]) for each chunk of tokens, with the final
// norm and the head applied to x [T, C].
template <typename Body>
void ForEachLogitsChunk(const OpContext& context, const ModelConfig& config,
                        const ModelViews<ConstTensorView>& weights, ConstTensorView x,
                        const Body& body) {
  const ArenaScope scope(context.arena);
  const int64_t rows = std::min(HeadChunk(config.vocab_size), x.dim(0));
  TensorView normed_buffer =
      Allocate(context, {rows, config.hidden_size}, MemoryPurpose::kWorkspace);
  TensorView logits_buffer =
      Allocate(context, {rows, config.vocab_size}, MemoryPurpose::kWorkspace);
  for (int64_t begin = 0; begin < x.dim(0); begin += rows) {
    const int64_t end = std::min(x.dim(0), begin + rows);
    TensorView normed = normed_buffer.Rows(0, end - begin);
    TensorView logits = logits_buffer.Rows(0, end - begin);
    RmsNormForward(context, x.Rows(begin, end), weights.final_norm, config.norm_eps, normed);
    LinearForward(context, normed, weights.head, logits);
    body(begin, end, normed, logits);
  }
}

}  // namespace

void EmbedTokens(const OpContext& context, const ModelConfig& config,
                 const ModelViews<ConstTensorView>& weights, absl::Span<const int32_t> tokens,
                 TensorView x) {
  EmbeddingForward(context, weights.embedding, tokens, EmbeddingScale(config), x);
  if (config.embedding_norm) RmsNormForward(context, x, ConstTensorView(), config.norm_eps, x);
}

TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            absl::Span<const int64_t> cu_seqlens,
                            absl::Span<const int64_t> positions) {
  TokenLayout layout;
  layout.cu_seqlens = cu_seqlens;
  layout.positions = positions;
  layout.tasks = TasksOfDocuments(cu_seqlens);
  if (config.has_kind(LayerKind::kDiagAttention)) {
    layout.block_tasks = TasksOfBlocks(cu_seqlens, config.block_size);
  }
  if (config.has_kind(LayerKind::kSoftmax)) {
    const auto tokens = static_cast<int64_t>(positions.size());
    const Shape shape{tokens, config.head_size() / 2};
    TensorView cos = Allocate(context, shape, MemoryPurpose::kActivations);
    TensorView sin = Allocate(context, shape, MemoryPurpose::kActivations);
    RopeTable(context, positions, RopeInverseFrequencies(config.rope, config.head_size()),
              RopeAttentionFactor(config.rope), cos, sin);
    layout.rope_cos = cos;
    layout.rope_sin = sin;
  }
  return layout;
}

Model::Model(const ModelConfig& config, ParameterLayout layout)
    : config_(config), layout_(std::move(layout)) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    specs_.push_back(MakeBlockSpec(config, layer));
  }
}

absl::StatusOr<Model> Model::Create(const ModelConfig& config, DType dtype, bool with_gradients,
                                    MemoryTracker& tracker) {
  EK_RETURN_IF_ERROR(Validate(config));
  Model model(config, ParameterLayout(config));
  const Shape flat{model.layout_.num_elements()};
  EK_ASSIGN_OR_RETURN(model.weights_,
                      Tensor::Create(dtype, flat, MemoryPurpose::kWeights, tracker));
  if (with_gradients) {
    EK_ASSIGN_OR_RETURN(model.gradients_,
                        Tensor::Create(dtype, flat, MemoryPurpose::kGradients, tracker));
  }
  return model;
}

double Model::ForwardBackward(const OpContext& context, const PackedBatch& batch, double loss_scale,
                              Recompute recompute, const GradientSink& sink) {
  const ArenaScope scope(context.arena);
  const auto weights = weight_views();
  const auto gradients = layout_.Views(gradients_.view());
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const int64_t head_begin = layout_.layer_end(config_.num_layers - 1);
  double loss = 0;
  std::vector<BlockActivations> saved(specs_.size());
  std::vector<Arena::Mark> marks(specs_.size());  // where each layer's activations begin
  TokenLayout layout;
  TensorView x, dx, embedded;
  if (tokens > 0) {
    const Shape stream{tokens, config_.hidden_size};
    layout = MakeTokenLayout(context, config_, batch.cu_seqlens, batch.positions);
    if (config_.embedding_norm) {
      embedded = Allocate(context, stream, MemoryPurpose::kActivations);
      EmbeddingForward(context, weights.embedding, batch.tokens, EmbeddingScale(config_), embedded);
    }
    // Below everything the layers stack up, which is given back layer by layer.
    dx = Allocate(context, stream, MemoryPurpose::kActivations);
    x = Allocate(context, stream, MemoryPurpose::kActivations);
    EmbedTokens(context, config_, weights, batch.tokens, x);
    for (size_t layer = 0; layer < specs_.size(); ++layer) {
      marks[layer] = context.arena.mark();
      TensorView y = Allocate(context, stream, MemoryPurpose::kActivations);
      saved[layer].x = x;
      BlockForward(context, specs_[layer], weights.blocks[layer], layout, recompute, saved[layer],
                   y);
      x = y;
    }

    std::vector<double> losses(static_cast<size_t>(HeadChunk(config_.vocab_size)));
    const ArenaScope head_scope(context.arena);
    TensorView dnormed =
        Allocate(context, {std::min(HeadChunk(config_.vocab_size), tokens), config_.hidden_size},
                 MemoryPurpose::kWorkspace);
    ForEachLogitsChunk(
        context, config_, weights, x,
        [&](int64_t begin, int64_t end, ConstTensorView normed, TensorView logits) {
          const auto n = static_cast<size_t>(end - begin);
          CrossEntropyForwardBackward(
              context, absl::MakeConstSpan(batch.targets).subspan(static_cast<size_t>(begin), n),
              loss_scale, logits, absl::MakeSpan(losses).subspan(0, n));
          for (size_t i = 0; i < n; ++i) loss += losses[i];
          LinearBackwardWeight(context, logits, normed, gradients.head);
          TensorView dn = dnormed.Rows(0, end - begin);
          LinearBackwardInput(context, logits, weights.head, dn);
          RmsNormBackward(context, x.Rows(begin, end), weights.final_norm, config_.norm_eps, dn,
                          dx.Rows(begin, end), /*accumulate=*/false, gradients.final_norm);
        });
  }
  sink(head_begin, layout_.num_elements());
  for (size_t layer = specs_.size(); layer-- > 0;) {
    if (tokens > 0) {
      BlockBackward(context, specs_[layer], weights.blocks[layer], gradients.blocks[layer], layout,
                    saved[layer], dx);
      context.arena.Release(marks[layer]);
    }
    sink(layout_.layer_begin(static_cast<int64_t>(layer)),
         layout_.layer_end(static_cast<int64_t>(layer)));
  }
  if (tokens > 0) {
    if (config_.embedding_norm) {
      RmsNormBackward(context, embedded, ConstTensorView(), config_.norm_eps, dx, dx,
                      /*accumulate=*/false, TensorView());
    }
    EmbeddingBackward(context, batch.tokens, EmbeddingScale(config_), dx, gradients.embedding);
  }
  sink(0, layout_.layer_begin(0));
  return loss;
}

namespace {

// Runs all blocks without keeping anything, in two buffers. Returns the last block's output [T, C],
// in the context's arena.
TensorView ForwardOnly(const OpContext& context, const Model& model,
                       const ModelViews<ConstTensorView>& weights, const PackedBatch& batch) {
  const ModelConfig& config = model.config();
  const Shape stream{static_cast<int64_t>(batch.tokens.size()), config.hidden_size};
  TensorView x = Allocate(context, stream, MemoryPurpose::kActivations);
  TensorView y = Allocate(context, stream, MemoryPurpose::kActivations);
  const TokenLayout layout = MakeTokenLayout(context, config, batch.cu_seqlens, batch.positions);
  EmbedTokens(context, config, weights, batch.tokens, x);
  for (size_t layer = 0; layer < model.block_specs().size(); ++layer) {
    BlockActivations saved;
    saved.x = x;
    BlockForward(context, model.block_specs()[layer], weights.blocks[layer], layout,
                 Recompute::kLayer, saved, y);
    std::swap(x, y);
  }
  return x;
}

}  // namespace

void Model::TokenLosses(const OpContext& context, const PackedBatch& batch,
                        absl::Span<double> losses) const {
  if (batch.tokens.empty()) return;
  const ArenaScope scope(context.arena);
  const auto weights = weight_views();
  const TensorView x = ForwardOnly(context, *this, weights, batch);
  ForEachLogitsChunk(context, config_, weights, x,
                     [&](int64_t begin, int64_t end, ConstTensorView, TensorView logits) {
                       const auto first = static_cast<size_t>(begin);
                       const auto n = static_cast<size_t>(end - begin);
                       CrossEntropyForward(context, logits,
                                           absl::MakeConstSpan(batch.targets).subspan(first, n),
                                           losses.subspan(first, n));
                     });
}

void Model::Logits(const OpContext& context, const PackedBatch& batch, TensorView logits) const {
  if (batch.tokens.empty()) return;
  const ArenaScope scope(context.arena);
  const auto weights = weight_views();
  const TensorView x = ForwardOnly(context, *this, weights, batch);
  ForEachLogitsChunk(context, config_, weights, x,
                     [&](int64_t begin, int64_t end, ConstTensorView, TensorView chunk) {
                       Copy(context, chunk, logits.Rows(begin, end));
                     });
}

}  // namespace evenkeel
