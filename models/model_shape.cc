#include "models/model_shape.h"

#include <algorithm>

#include "models/block_spec.h"
#include "models/model_head.h"
#include "models/parameters.h"
#include "models/token_layout.h"

namespace evenkeel {
namespace {

LayerShape ShapeOf(const BlockSpec& spec) {
  LayerShape layer;
  layer.is_linear = spec.core == CoreKind::kLightning;
  if (spec.core == CoreKind::kBlockSoftmax || spec.core == CoreKind::kBlockRelu) {
    layer.block_size = spec.block_size;
  }
  layer.num_heads = spec.num_heads;
  layer.num_kv_heads = spec.num_kv_heads;
  layer.qk_size = spec.core_qk_size();
  layer.v_size = spec.head_size;
  layer.projection_width = spec.projection_width();
  layer.out_width = spec.q_width();
  layer.intermediate_size = spec.intermediate_size;
  layer.has_lse = spec.has_lse();
  if (spec.copies_qk()) {
    layer.copied_qk_width = (spec.num_heads + spec.num_kv_heads) * spec.core_qk_size();
  }
  layer.widens_qk = spec.position == PositionKind::kLrpe;
  layer.gated = spec.gated;
  layer.has_output_norm = spec.output_norm;
  layer.has_mlp_bias = spec.has_mlp_bias;
  return layer;
}

}  // namespace

ModelShape ShapeOf(const ModelConfig& config) {
  return ShapeOf(config, WholeModel(config));
}

ModelShape ShapeOf(const ModelConfig& config, const ModelPart& part) {
  ModelShape shape;
  shape.hidden_size = config.hidden_size;
  shape.vocab_size = SliceOf(config.vocab_size, part.tp, part.tp_rank).size();
  const ParameterLayout layout(config, part);
  shape.num_parameters = layout.num_elements();
  shape.unit_begin = layout.unit_begin();
  shape.ties_embedding = config.tie_embeddings;
  shape.is_first = part.is_first;
  shape.is_last = part.is_last;
  if (config.has_kind(LayerKind::kSoftmax)) shape.rotary_size = config.head_size();
  shape.keeps_embedding = config.embedding_norm;
  for (int64_t local = 0; local < layout.num_layers(); ++local) {
    shape.layers.push_back(ShapeOf(MakeBlockSpec(config, part, layout.layer(local))));
  }
  for (int64_t layer = 0; layer < config.num_layers && !shape.pooled.has_value(); ++layer) {
    if (config.kind(layer) != LayerKind::kSoftmax) continue;
    shape.pooled = ShapeOf(MakeBlockSpec(config, part, layer));
  }
  for (const LayerRange& chunk : part.chunks) {
    const int64_t begin = shape.chunks.empty() ? 0 : shape.chunks.back().end;
    shape.chunks.push_back({begin, begin + chunk.end - chunk.begin});
  }
  for (const ParameterSpec& spec : layout.specs()) {
    if (spec.copies != TensorCopies::kNone) {
      shape.shared.push_back(
          {spec.offset, spec.offset + spec.size(), spec.copies == TensorCopies::kKeyValue});
    }
    // Units of layers are those between embedding and head.
    const auto unit =
        std::upper_bound(shape.unit_begin.begin(), shape.unit_begin.end(), spec.offset) -
        shape.unit_begin.begin() - 1;
    const int64_t local = unit - ParameterLayout::UnitOfLayer(0);
    if (spec.shape.rank != 2 || local < 0 || local >= layout.num_layers()) continue;
    shape.layers[static_cast<size_t>(local)].num_matmul_parameters += spec.size();
  }
  for (const LayerShape& layer : shape.layers) {
    shape.num_matmul_parameters += layer.num_matmul_parameters;
  }
  // The embedding is a gather, no product; a tied one counts once, as the head.
  if (part.is_last) shape.num_matmul_parameters += shape.vocab_size * config.hidden_size;
  return shape;
}

ComputeShape ComputeShapeOf(Device device, DType dtype, int64_t vocab_rows, int tp) {
  ComputeShape compute;
  compute.element_bytes = SizeOf(dtype);
  compute.wide_bytes = SizeOf(WideDType(dtype));
  compute.has_copy = dtype != WideDType(dtype);
  compute.token_chunks = TokenChunks(device, tp == 1);
  compute.logits_rows = LogitsChunk(device, vocab_rows);
  compute.is_gpu = device == Device::kCuda;
  return compute;
}

RecomputePlan PlanOf(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone:
      return RecomputePlan::kNone;
    case Recompute::kMlp:
      return RecomputePlan::kMlp;
    case Recompute::kAllButAttention:
      return RecomputePlan::kAllButAttention;
    case Recompute::kLayer:
      return RecomputePlan::kLayer;
  }
  return RecomputePlan::kNone;
}

}  // namespace evenkeel
