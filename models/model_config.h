// The shape of a model: everything that decides its parameters and its mathematics.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/ops/position.h"

namespace evenkeel {

class ConfigFields;

// What a layer is. A model may mix the first two; the last two are the layers of TransNormer v1.
enum class LayerKind {
  kSoftmax,        // Llama: RMSNorm, RoPE, grouped-query softmax attention, SwiGLU
  kLightning,      // TransNormerLLM: SRMSNorm, gated lightning attention, SGLU
  kNormAttention,  // TransNormer v1: linear attention without decay, normalised output
  kDiagAttention,  // TransNormer v1: attention inside blocks of block_size tokens
};

const char* NameOf(LayerKind kind);

// The two variants of TransNormer v1 (reference: "The Devil in Linear Transformer", section 4).
enum class TransNormerVariant {
  kT1,  // features elu; ReLU attention, normalised, in the blocks
  kT2,  // features 1 + elu; softmax attention in the blocks
};

struct ModelConfig {
  // Kinds of the layers, repeated until there are num_layers of them.
  std::vector<LayerKind> layer_pattern = {LayerKind::kSoftmax};
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;             // softmax layers only; 0 = num_heads
  int64_t head_dim = 0;                 // 0 = hidden_size / num_heads
  int64_t max_position_embeddings = 0;  // 0 = unlimited; longer input is refused otherwise
  double norm_eps = 1e-6;
  bool tie_embeddings = false;
  bool scale_embedding = false;  // embeddings times sqrt(hidden_size) (TransNormerLLM)
  bool embedding_norm = false;   // norm after the embedding (TransNormer v1)
  bool final_norm_gain = true;   // RMSNorm with gain, or SRMSNorm without, before the head

  // Softmax layers.
  RopeConfig rope;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3

  // Lightning layers: which use LRPE, by index among all layers.
  std::vector<int64_t> lrpe_layers = {0};

  // TransNormer v1.
  TransNormerVariant variant = TransNormerVariant::kT2;
  int64_t block_size = 64;

  // Initialisation: Normal(0, init_std); with depth_scaled_init the projections that write to the
  // residual stream are scaled by 1 / sqrt(2 num_layers).
  double init_std = 0.02;
  bool depth_scaled_init = false;

  int64_t kv_heads() const { return num_kv_heads > 0 ? num_kv_heads : num_heads; }
  int64_t head_size() const { return head_dim > 0 ? head_dim : hidden_size / num_heads; }
  LayerKind kind(int64_t layer) const {
    return layer_pattern[static_cast<size_t>(layer) % layer_pattern.size()];
  }
  bool uses_lrpe(int64_t layer) const;
  bool has_kind(LayerKind kind) const;
};

// Reads or writes the `model` section of a run config.
void DescribeFields(ConfigFields& fields, ModelConfig& config);

// Checks what fields alone cannot: heads that divide, sizes that fit. The message names all values.
absl::Status Validate(const ModelConfig& config);

}  // namespace evenkeel
