#include "models/block_spec.h"

#include <cmath>

#include "attention/lightning_attention.h"

namespace evenkeel {

BlockSpec MakeBlockSpec(const ModelConfig& config, int64_t layer) {
  return MakeBlockSpec(config, WholeModel(config), layer);
}

BlockSpec MakeBlockSpec(const ModelConfig& config, const ModelPart& part, int64_t layer) {
  const LayerKind kind = config.kind(layer);
  const Slice heads = QueryHeads(config.num_heads, part);
  BlockSpec spec;
  spec.hidden_size = config.hidden_size;
  spec.num_heads = heads.size();
  spec.num_kv_heads =
      kind == LayerKind::kSoftmax ? KeyValueHeads(config.kv_heads(), part).size() : heads.size();
  spec.head_size = config.head_size();
  spec.norm_columns = config.num_heads * config.head_size();
  spec.intermediate_size = SliceOf(config.intermediate_size, part.tp, part.tp_rank).size();
  spec.norm_eps = config.norm_eps;
  spec.block_size = config.block_size;
  const bool t1 = config.variant == TransNormerVariant::kT1;
  const double softmax_scale = 1 / std::sqrt(static_cast<double>(spec.head_size));
  switch (kind) {
    case LayerKind::kSoftmax:
      spec.qk_norm = config.qk_norm;
      spec.position = PositionKind::kRope;
      spec.scale = softmax_scale;
      break;
    case LayerKind::kLightning:
      spec.has_activation = true;
      spec.activation = Activation::kSilu;
      spec.position = config.uses_lrpe(layer) ? PositionKind::kLrpe : PositionKind::kNone;
      spec.core = CoreKind::kLightning;
      spec.slopes = TransNormerSlopes(config.num_heads, layer, config.num_layers);
      spec.slopes = {spec.slopes.begin() + heads.begin, spec.slopes.begin() + heads.end};
      spec.gated = true;
      spec.output_norm = true;
      spec.unit = GatedUnit::kSglu;
      break;
    case LayerKind::kNormAttention:
      spec.has_activation = true;
      spec.activation = t1 ? Activation::kElu : Activation::kOneElu;
      spec.position = PositionKind::kUrpe;
      spec.core = CoreKind::kLightning;
      spec.slopes.assign(static_cast<size_t>(heads.size()), 0.0);
      spec.output_norm = true;
      spec.has_mlp_bias = true;
      break;
    case LayerKind::kDiagAttention:
      spec.position = PositionKind::kUrpe;
      spec.core = t1 ? CoreKind::kBlockRelu : CoreKind::kBlockSoftmax;
      spec.scale = softmax_scale;
      spec.output_norm = t1;
      spec.has_mlp_bias = true;
      break;
  }
  return spec;
}

}  // namespace evenkeel
