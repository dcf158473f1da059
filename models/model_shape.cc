#include "models/model_shape.h"

#include "models/block_spec.h"
#include "models/model_head.h"
#include "models/parameters.h"
#include "models/token_layout.h"

namespace evenkeel {

ModelShape ShapeOf(const ModelConfig& config) {
  ModelShape shape;
  shape.hidden_size = config.hidden_size;
  shape.vocab_size = config.vocab_size;
  const ParameterLayout layout(config);
  shape.num_parameters = layout.num_elements();
  for (const ParameterSpec& spec : layout.specs()) {
    if (spec.shape.rank == 2) shape.num_matmul_parameters += spec.size();
  }
  // The embedding is a gather, no product; a tied one counts once, as the head.
  if (!config.tie_embeddings) shape.num_matmul_parameters -= config.vocab_size * config.hidden_size;
  if (config.has_kind(LayerKind::kSoftmax)) shape.rotary_size = config.head_size();
  shape.keeps_embedding = config.embedding_norm;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const BlockSpec spec = MakeBlockSpec(config, i);
    LayerShape layer;
    layer.is_linear = spec.core == CoreKind::kLightning;
    if (spec.core == CoreKind::kBlockSoftmax || spec.core == CoreKind::kBlockRelu) {
      layer.block_size = spec.block_size;
    }
    layer.num_heads = spec.num_heads;
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
    shape.layers.push_back(layer);
  }
  return shape;
}

ComputeShape ComputeShapeOf(Device device, DType dtype, int64_t vocab_size) {
  ComputeShape compute;
  compute.element_bytes = SizeOf(dtype);
  compute.wide_bytes = SizeOf(WideDType(dtype));
  compute.has_copy = dtype != WideDType(dtype);
  compute.token_chunk = TokenChunk(device);
  compute.logits_rows = LogitsChunk(device, vocab_size);
  compute.is_gpu = device == Device::kCuda;
  return compute;
}

}  // namespace evenkeel
