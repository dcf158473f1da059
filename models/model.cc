#include "models/model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "attention/block_attention.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/embedding.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {
namespace {

double EmbeddingScale(const ModelConfig& config) {
  return config.scale_embedding ? std::sqrt(static_cast<double>(config.hidden_size)) : 1.0;
}

TensorView Allocate(const OpContext& context, Shape shape, MemoryPurpose purpose) {
  return context.arena.Allocate(context.dtype, shape, purpose);
}

// [T], of the dtype that cross-entropy writes.
TensorView AllocateLosses(const OpContext& context, int64_t tokens) {
  return context.arena.Allocate(context.cuda == nullptr ? DType::kF64 : DType::kF32, {tokens},
                                MemoryPurpose::kWorkspace);
}

// Calls body(begin, end, normed [c, C], logits [c, V]) for each chunk of tokens, with the final
// norm and the head applied to x [T, C].
template <typename Body>
void ForEachLogitsChunk(const OpContext& context, const ModelConfig& config,
                        const ModelViews<ConstTensorView>& weights, ConstTensorView x,
                        const Body& body) {
  const ArenaScope scope(context.arena);
  const int64_t rows = std::min(LogitsChunk(context.device(), config.vocab_size), x.dim(0));
  TensorView normed_buffer =
      Allocate(context, {rows, config.hidden_size}, MemoryPurpose::kWorkspace);
  // cuBLASLt and vector loads want rows aligned, whatever the vocabulary.
  const int64_t width =
      context.cuda == nullptr ? config.vocab_size : (config.vocab_size + 7) / 8 * 8;
  TensorView logits_buffer =
      Allocate(context, {rows, width}, MemoryPurpose::kWorkspace).Columns(0, config.vocab_size);
  for (int64_t begin = 0; begin < x.dim(0); begin += rows) {
    const int64_t end = std::min(x.dim(0), begin + rows);
    TensorView normed = normed_buffer.Rows(0, end - begin);
    TensorView logits = logits_buffer.Rows(0, end - begin);
    RmsNormForward(context, x.Rows(begin, end), weights.final_norm, config.norm_eps, normed);
    LinearForward(context, normed, weights.head, logits);
    body(begin, end, normed, logits);
  }
}

// A GPU's kernels read whole vectors of 8 numbers.
absl::Status CheckSizesForGpu(const ModelConfig& config) {
  constexpr int64_t kStep = 8, kMaxHead = 256;
  const auto error = [](const char* key, int64_t value, const std::string& need) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.", key, " is ", value, ": on a GPU it has to be ", need));
  };
  const int64_t head = config.head_size();
  if (config.hidden_size % kStep != 0) {
    return error("hidden_size", config.hidden_size, "a multiple of 8");
  }
  if (config.intermediate_size % kStep != 0) {
    return error("intermediate_size", config.intermediate_size, "a multiple of 8");
  }
  bool widens = false;  // LRPE doubles q and k
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    widens |= config.kind(layer) == LayerKind::kLightning && config.uses_lrpe(layer);
  }
  const int64_t most = widens ? kMaxHead / 2 : kMaxHead;
  if (head % kStep != 0 || head > most) {
    return error("head_dim", head, absl::StrCat("a multiple of 8 up to ", most));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t LogitsChunk(Device device, int64_t vocab_size) {
  // On the CPU 8 Mi logits, which stay in its caches; on a GPU 256 Mi, enough for whole waves of
  // tiles.
  if (device == Device::kCpu) {
    return std::clamp<int64_t>((int64_t{1} << 23) / vocab_size, 16, 512);
  }
  return std::clamp<int64_t>((int64_t{1} << 28) / vocab_size / 256 * 256, 256, 16384);
}

void EmbedTokens(const OpContext& context, const ModelConfig& config,
                 const ModelViews<ConstTensorView>& weights, Indices tokens, TensorView x) {
  EmbeddingForward(context, weights.embedding, tokens, EmbeddingScale(config), x);
  if (config.embedding_norm) RmsNormForward(context, x, ConstTensorView(), config.norm_eps, x);
}

TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            absl::Span<const int64_t> cu_seqlens,
                            absl::Span<const int64_t> positions, bool backward) {
  TokenLayout layout;
  layout.positions = Mirror(context, Positions(positions));
  layout.sequences = cu_seqlens;
  if (config.has_kind(LayerKind::kLightning) || config.has_kind(LayerKind::kNormAttention)) {
    layout.sequences = PlanSequences(context, cu_seqlens, config.num_heads, config.head_size());
  }
  if (config.has_kind(LayerKind::kDiagAttention)) {
    layout.block_list = TasksOfBlocks(cu_seqlens, config.block_size);
    layout.block_tasks = PlanTasks(context, layout.block_list, config.head_size(), backward);
  }
  if (config.has_kind(LayerKind::kSoftmax)) {
    layout.task_list = TasksOfDocuments(cu_seqlens);
    layout.tasks = PlanTasks(context, layout.task_list, config.head_size(), backward);
    const auto tokens = static_cast<int64_t>(positions.size());
    const Shape shape{tokens, config.head_size() / 2};
    const auto allocate = [&] {
      return context.arena.Allocate(context.wide_dtype(), shape, MemoryPurpose::kActivations);
    };
    TensorView cos = allocate(), sin = allocate();
    RopeTable(context, layout.positions, RopeInverseFrequencies(config.rope, config.head_size()),
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

absl::StatusOr<Model> Model::Create(const OpContext& context, const ModelConfig& config,
                                    bool with_gradients, MemoryTracker& tracker) {
  EK_RETURN_IF_ERROR(Validate(config));
  if (context.cuda != nullptr) EK_RETURN_IF_ERROR(CheckSizesForGpu(config));
  Model model(config, ParameterLayout(config));
  const auto create = [&](DType dtype, MemoryPurpose purpose) {
    return Tensor::Create(dtype, {model.layout_.num_elements()}, purpose, tracker,
                          context.device());
  };
  EK_ASSIGN_OR_RETURN(model.weights_, create(context.wide_dtype(), MemoryPurpose::kWeights));
  if (context.dtype != context.wide_dtype()) {
    EK_ASSIGN_OR_RETURN(model.copy_, create(context.dtype, MemoryPurpose::kWeights));
  }
  if (with_gradients) {
    EK_ASSIGN_OR_RETURN(model.gradients_, create(context.wide_dtype(), MemoryPurpose::kGradients));
  }
  return model;
}

void Model::UpdateCopy(const OpContext& context) {
  if (!copy_.empty()) Copy(context, weights_.view(), copy_.view());
}

ModelViews<ConstTensorView> Model::weight_views() const {
  const ConstTensorView exact = weights_.view();
  return layout_.Views(copy_.empty() ? exact : copy_.view(), exact);
}

void Model::ForwardBackward(const OpContext& context, const PackedBatch& batch, double loss_scale,
                            Recompute recompute, const GradientSink& sink, TensorView loss_sum) {
  const ArenaScope scope(context.arena);
  const auto weights = weight_views();
  const auto gradients = layout_.Views(gradients_.view());
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const int64_t head_begin = layout_.layer_end(config_.num_layers - 1);
  std::vector<BlockActivations> saved(specs_.size());
  std::vector<Arena::Mark> marks(specs_.size());  // where each layer's activations begin
  TokenLayout layout;
  TensorView x, dx, embedded;
  if (tokens > 0) {
    const Shape stream{tokens, config_.hidden_size};
    const Indices ids = Mirror(context, Indices(batch.tokens));
    layout = MakeTokenLayout(context, config_, batch.cu_seqlens, batch.positions, true);
    if (config_.embedding_norm) {
      embedded = Allocate(context, stream, MemoryPurpose::kActivations);
      EmbeddingForward(context, weights.embedding, ids, EmbeddingScale(config_), embedded);
    }
    // Below everything the layers stack up, which is given back layer by layer.
    dx = Allocate(context, stream, MemoryPurpose::kActivations);
    x = Allocate(context, stream, MemoryPurpose::kActivations);
    EmbedTokens(context, config_, weights, ids, x);
    for (size_t layer = 0; layer < specs_.size(); ++layer) {
      const TraceScope trace(context, "layer", layer, "forward");
      marks[layer] = context.arena.mark();
      TensorView y = Allocate(context, stream, MemoryPurpose::kActivations);
      saved[layer].x = x;
      BlockForward(context, specs_[layer], weights.blocks[layer], layout, recompute, saved[layer],
                   y);
      x = y;
    }

    const TraceScope trace(context, "head and loss");
    const ArenaScope head_scope(context.arena);
    const Indices targets = Mirror(context, Indices(batch.targets));
    TensorView losses = AllocateLosses(context, tokens);
    TensorView dnormed = Allocate(
        context,
        {std::min(LogitsChunk(context.device(), config_.vocab_size), tokens), config_.hidden_size},
        MemoryPurpose::kWorkspace);
    ForEachLogitsChunk(context, config_, weights, x,
                       [&](int64_t begin, int64_t end, ConstTensorView normed, TensorView logits) {
                         CrossEntropyForwardBackward(context, targets.Slice(begin, end), loss_scale,
                                                     logits, losses.Rows(begin, end));
                         LinearBackwardWeight(context, logits, normed, gradients.head);
                         TensorView dn = dnormed.Rows(0, end - begin);
                         LinearBackwardInput(context, logits, weights.head, dn);
                         RmsNormBackward(context, x.Rows(begin, end), weights.final_norm,
                                         config_.norm_eps, dn, dx.Rows(begin, end),
                                         /*accumulate=*/false, gradients.final_norm);
                       });
    AddSum(context, losses, loss_sum);
  }
  sink(head_begin, layout_.num_elements());
  for (size_t layer = specs_.size(); layer-- > 0;) {
    if (tokens > 0) {
      const TraceScope trace(context, "layer", layer, "backward");
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
  const TokenLayout layout =
      MakeTokenLayout(context, config, batch.cu_seqlens, batch.positions, /*backward=*/false);
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

absl::Status Model::TokenLosses(const OpContext& context, const PackedBatch& batch,
                                absl::Span<double> losses) const {
  if (batch.tokens.empty()) return absl::OkStatus();
  const ArenaScope scope(context.arena);
  const auto weights = weight_views();
  const TensorView x = ForwardOnly(context, *this, weights, batch);
  const TensorView values = AllocateLosses(context, x.dim(0));
  const Indices targets = Mirror(context, Indices(batch.targets));
  ForEachLogitsChunk(context, config_, weights, x,
                     [&](int64_t begin, int64_t end, ConstTensorView, TensorView logits) {
                       CrossEntropyForward(context, logits, targets.Slice(begin, end),
                                           values.Rows(begin, end));
                     });
  return ReadDoubles(context, values, losses);
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
