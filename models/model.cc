#include "models/model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/model_head.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/fp8.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {
namespace {

TensorView Allocate(const OpContext& context, Shape shape) {
  return context.arena.Allocate(context.dtype, shape, MemoryPurpose::kActivations);
}

// A GPU's kernels read vectors of 16 bytes: 8 numbers in bf16, 16 in FP8.
absl::Status CheckSizesForGpu(const ModelConfig& config, const ModelPart& part, bool fp8) {
  constexpr int64_t kMaxHead = 256;
  const int64_t step = fp8 ? 16 : 8;
  const auto error = [&](const char* key, int64_t value, const std::string& need) {
    return absl::InvalidArgumentError(absl::StrCat("model.", key, " is ", value, ": on a GPU",
                                                   fp8 ? " with runtime.fp8" : "", " it has to be ",
                                                   need));
  };
  const int64_t head = config.head_size();
  const std::string multiple = absl::StrCat("a multiple of ", step);
  if (config.hidden_size % step != 0) return error("hidden_size", config.hidden_size, multiple);
  for (int rank = 0; rank < part.tp; ++rank) {
    if (SliceOf(config.intermediate_size, part.tp, rank).size() % step == 0) continue;
    return error("intermediate_size", config.intermediate_size,
                 part.tp == 1 ? multiple
                              : absl::StrCat("a multiple of ", step * part.tp, " (", step,
                                             " times parallel.tp)"));
  }
  bool widens = false;  // LRPE doubles q and k
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    widens |= config.kind(layer) == LayerKind::kLightning && config.uses_lrpe(layer);
  }
  const int64_t most = widens ? kMaxHead / 2 : kMaxHead;
  if (head % step != 0 || head > most) {
    return error("head_dim", head, absl::StrCat(multiple, " up to ", most));
  }
  return absl::OkStatus();
}

// Operands of a block's products have places in this order: of each of the four products, x, the
// weight, and the gradient of y.
constexpr int64_t kSlotsOfProduct = 3, kSlotsOfLayer = 4 * kSlotsOfProduct;

std::vector<DType> Fp8Formats(int64_t num_layers) {
  std::vector<DType> formats;
  for (int64_t i = 0; i < num_layers * kSlotsOfLayer; ++i) {
    // Gradients span more orders of magnitude.
    formats.push_back(i % kSlotsOfProduct == 2 ? DType::kF8E5M2 : DType::kF8E4M3);
  }
  return formats;
}

Fp8LinearSlots SlotsOf(Fp8Scales* scales, int64_t layer, int64_t product) {
  const int64_t first = layer * kSlotsOfLayer + product * kSlotsOfProduct;
  return {{scales, first}, {scales, first + 1}, {scales, first + 2}};
}

}  // namespace

Model::Model(const ModelConfig& config, const ModelSetup& setup, ParameterLayout layout)
    : config_(config), setup_(setup), layout_(std::move(layout)) {
  for (int64_t local = 0; local < layout_.num_layers(); ++local) {
    specs_.push_back(MakeBlockSpec(config, layout_.part(), layout_.layer(local)));
  }
}

absl::StatusOr<Model> Model::Create(const OpContext& context, const ModelConfig& config,
                                    const ModelSetup& wanted, MemoryTracker& tracker) {
  EK_RETURN_IF_ERROR(Validate(config));
  ModelSetup setup = wanted;
  if (setup.part.chunks.empty()) setup.part.chunks.push_back({0, config.num_layers});
  if (context.cuda != nullptr) EK_RETURN_IF_ERROR(CheckSizesForGpu(config, setup.part, setup.fp8));
  if (setup.fp8) EK_RETURN_IF_ERROR(CheckFp8(context));
  Model model(config, setup, ParameterLayout(config, setup.part));
  ParameterStoreOptions options;
  options.stage = setup.sharding;
  options.data = setup.axes.data;
  options.with_gradients = setup.with_gradients;
  options.bucket_elements = setup.bucket_elements;
  EK_ASSIGN_OR_RETURN(
      model.store_, ParameterStore::Create(context, model.layout_.unit_begin(), options, tracker));
  if (setup.fp8) EK_RETURN_IF_ERROR(model.AddFp8Scales(context, tracker));
  model.gradient_sum_ = GradientSum(model.layout_, model.store_, setup.axes, config.tie_embeddings);
  return model;
}

absl::Status Model::AddFp8Scales(const OpContext& context, MemoryTracker& tracker) {
  EK_ASSIGN_OR_RETURN(Fp8Scales scales,
                      Fp8Scales::Create(context, Fp8Formats(config_.num_layers), tracker));
  fp8_scales_ = std::make_unique<Fp8Scales>(std::move(scales));
  for (int64_t local = 0; local < layout_.num_layers(); ++local) {
    auto& fp8 = specs_[static_cast<size_t>(local)].fp8;
    int64_t product = 0;
    for (Fp8LinearSlots* slots : {&fp8.in_proj, &fp8.out_proj, &fp8.mlp_pair, &fp8.mlp_down}) {
      *slots = SlotsOf(fp8_scales_.get(), layout_.layer(local), product++);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Model> Model::Create(const OpContext& context, const ModelConfig& config,
                                    bool with_gradients, MemoryTracker& tracker) {
  ModelSetup setup;
  setup.with_gradients = with_gradients;
  return Create(context, config, setup, tracker);
}

LayerRange Model::LocalLayers(int chunk) const {
  LayerRange range;
  for (int c = 0; c <= chunk; ++c) {
    const LayerRange& layers = layout_.part().chunks[static_cast<size_t>(c)];
    range.begin = range.end;
    range.end += layers.end - layers.begin;
  }
  return range;
}

void Model::PrefetchLayer(const OpContext& context, int64_t local_layer) {
  store_.PrefetchWeights(context, ParameterLayout::UnitOfLayer(local_layer));
}

ConstTensorView Model::AcquireEmbedding(const OpContext& context) {
  return layout_.Embedding(store_.AcquireWeights(context, ParameterLayout::kEmbeddingUnit));
}

BlockViews<ConstTensorView> Model::AcquireBlock(const OpContext& context, int64_t local_layer) {
  return layout_.Block(local_layer,
                       store_.AcquireWeights(context, ParameterLayout::UnitOfLayer(local_layer)),
                       store_.exact());
}

HeadViews<ConstTensorView> Model::AcquireHead(const OpContext& context) {
  const ConstTensorView head = store_.AcquireWeights(context, layout_.head_unit());
  const ConstTensorView embedding =
      config_.tie_embeddings ? store_.AcquireWeights(context, ParameterLayout::kEmbeddingUnit)
                             : ConstTensorView();
  return layout_.Head(head, embedding);
}

void Model::ReleaseHead() {
  store_.ReleaseWeights(layout_.head_unit());
  if (config_.tie_embeddings) store_.ReleaseWeights(ParameterLayout::kEmbeddingUnit);
}

void Model::BeginPass(const OpContext& context, int chunk, const PackedBatch& batch, bool backward,
                      StagePass& pass) {
  pass.batch = &batch;
  const TokenAxes axes{setup_.axes.tp, setup_.axes.cp, setup_.context};
  pass.layout = MakeTokenLayout(context, config_, batch, axes, backward, &pass.shard);
  const Shape stream{pass.layout.shards.num_mine(), config_.hidden_size};
  if (begins(chunk) && config_.embedding_norm && backward) {
    pass.embedded = Allocate(context, stream);
  }
  // Below everything the layers stack up, which is given back layer by layer.
  if (backward) pass.dx = Allocate(context, stream);
  pass.x = Allocate(context, stream);
  if (!begins(chunk)) return;
  const ConstTensorView table = AcquireEmbedding(context);
  PrefetchLayer(context, 0);
  if (!pass.is_empty()) EmbedForward(context, config_, layout_.part(), table, pass);
  store_.ReleaseWeights(ParameterLayout::kEmbeddingUnit);
}

void Model::Forward(const OpContext& context, int chunk, Recompute recompute, StagePass& pass) {
  const LayerRange layers = LocalLayers(chunk);
  pass.saved.resize(static_cast<size_t>(layers.end - layers.begin));
  pass.marks.resize(pass.saved.size());
  TensorView x = pass.x;
  for (int64_t local = layers.begin; local < layers.end; ++local) {
    const TraceScope trace(context, "layer", static_cast<size_t>(layout_.layer(local)), "forward");
    const auto i = static_cast<size_t>(local - layers.begin);
    const auto weights = AcquireBlock(context, local);
    if (local + 1 < layers.end) PrefetchLayer(context, local + 1);
    pass.marks[i] = context.arena.mark();
    const TensorView y = Allocate(context, x.shape);
    pass.saved[i].x = x;
    if (!pass.is_empty()) {
      BlockForward(context, specs_[static_cast<size_t>(local)], weights, pass.layout, recompute,
                   pass.saved[i], y);
    }
    store_.ReleaseWeights(ParameterLayout::UnitOfLayer(local));
    x = y;
  }
  pass.y = x;
}

void Model::LossBackward(const OpContext& context, double loss_scale, TensorView loss_sum,
                         StagePass& pass) {
  const TraceScope trace(context, "head and loss");
  const bool is_tied = config_.tie_embeddings;
  const auto weights = AcquireHead(context);
  const TensorView head = store_.AcquireGradients(context, layout_.head_unit());
  const TensorView embedding =
      is_tied ? store_.AcquireGradients(context, ParameterLayout::kEmbeddingUnit) : TensorView();
  if (!pass.is_empty()) {
    HeadForwardBackward(context, config_, layout_.part(), weights, layout_.Head(head, embedding),
                        loss_scale, loss_sum, pass);
  }
  // With a tied embedding these are not final yet.
  if (is_tied) store_.ReleaseGradients(ParameterLayout::kEmbeddingUnit, /*is_final=*/false);
  ReleaseHead();
}

void Model::BeginBackward(const OpContext& context, int chunk, double loss_scale, bool is_last,
                          TensorView loss_sum, StagePass& pass) {
  if (ends(chunk)) LossBackward(context, loss_scale, loss_sum, pass);
  if (chunk + 1 == num_chunks()) store_.ReleaseGradients(layout_.head_unit(), is_last);
}

void Model::FinishBackward(const OpContext& context, int chunk, bool is_last, StagePass& pass) {
  if (chunk > 0) return;
  const int embedding = ParameterLayout::kEmbeddingUnit;
  if (begins(chunk)) {
    const TensorView unit = store_.AcquireGradients(context, embedding);
    if (!pass.is_empty()) {
      EmbedBackward(context, config_, layout_.Embedding(unit), pass);
    }
  }
  store_.ReleaseGradients(embedding, is_last);
  store_.ReleaseGradients(ParameterLayout::kExactUnit, is_last);
}

void Model::Backward(const OpContext& context, int chunk, double loss_scale, bool is_last,
                     TensorView loss_sum, StagePass& pass) {
  BeginBackward(context, chunk, loss_scale, is_last, loss_sum, pass);
  const LayerRange layers = LocalLayers(chunk);
  for (int64_t local = layers.end; local-- > layers.begin;) {
    const TraceScope trace(context, "layer", static_cast<size_t>(layout_.layer(local)), "backward");
    const auto i = static_cast<size_t>(local - layers.begin);
    const int unit = ParameterLayout::UnitOfLayer(local);
    const auto weights = AcquireBlock(context, local);
    if (local > layers.begin) PrefetchLayer(context, local - 1);
    const auto gradients =
        layout_.Block(local, store_.AcquireGradients(context, unit), store_.exact_gradients());
    if (!pass.is_empty()) {
      BlockBackward(context, specs_[static_cast<size_t>(local)], weights, gradients, pass.layout,
                    pass.saved[i], pass.dx);
    }
    context.arena.Release(pass.marks[i]);
    store_.ReleaseWeights(unit);
    store_.ReleaseGradients(unit, is_last);
  }
  FinishBackward(context, chunk, is_last, pass);
}

void Model::ForwardBackward(const OpContext& context, const PackedBatch& batch, double loss_scale,
                            Recompute recompute, bool is_last, TensorView loss_sum) {
  const ArenaScope scope(context.arena);
  StagePass pass;
  BeginPass(context, 0, batch, /*backward=*/true, pass);
  Forward(context, 0, recompute, pass);
  Backward(context, 0, loss_scale, is_last, loss_sum, pass);
}

void Model::FinishGradients(const OpContext& context, TensorView sum_of_squares) {
  store_.FinishGradients(context);
  gradient_sum_.Finish(context, gradients().view(), sum_of_squares);
}

void Model::DropGradients(const OpContext& context) {
  SetZero(context, store_.gradients().view());
  store_.ClearGradients(context);
}

void Model::ForwardOnly(const OpContext& context, int chunk, StagePass& pass) {
  const LayerRange layers = LocalLayers(chunk);
  TensorView x = pass.x, y = Allocate(context, x.shape);
  for (int64_t local = layers.begin; local < layers.end; ++local) {
    const auto weights = AcquireBlock(context, local);
    if (local + 1 < layers.end) PrefetchLayer(context, local + 1);
    BlockActivations saved;
    saved.x = x;
    if (!pass.is_empty()) {
      BlockForward(context, specs_[static_cast<size_t>(local)], weights, pass.layout,
                   Recompute::kLayer, saved, y);
    }
    store_.ReleaseWeights(ParameterLayout::UnitOfLayer(local));
    std::swap(x, y);
  }
  pass.y = x;
}

absl::Status Model::ReadLosses(const OpContext& context, const StagePass& pass,
                               absl::Span<double> losses) {
  const auto weights = AcquireHead(context);
  const ArenaScope scope(context.arena);
  const TensorView values = AllocateLosses(context, pass.layout.shards.num_tokens());
  if (!pass.is_empty()) HeadForward(context, config_, layout_.part(), weights, pass, values);
  ReleaseHead();
  return ReadDoubles(context, values, losses);
}

absl::Status Model::TokenLosses(const OpContext& context, const PackedBatch& batch,
                                absl::Span<double> losses) {
  if (batch.tokens.empty()) return absl::OkStatus();
  const ArenaScope scope(context.arena);
  StagePass pass;
  BeginPass(context, 0, batch, /*backward=*/false, pass);
  ForwardOnly(context, 0, pass);
  return ReadLosses(context, pass, losses);
}

void Model::Logits(const OpContext& context, const PackedBatch& batch, TensorView logits) {
  if (batch.tokens.empty()) return;
  EK_CHECK(layout_.part().tp == 1) << "logits of a slice of the vocabulary";
  const ArenaScope scope(context.arena);
  StagePass pass;
  BeginPass(context, 0, batch, /*backward=*/false, pass);
  ForwardOnly(context, 0, pass);
  const auto weights = AcquireHead(context);
  HeadLogits(context, config_, weights, pass.y, logits);
  ReleaseHead();
}

}  // namespace evenkeel
