// What distinguishes one kind of transformer block from another, as data: the functions of a block
// (models/block.h) are the same for all kinds and follow this description.
#pragma once

#include <cstdint>
#include <vector>

#include "models/model_config.h"
#include "models/model_part.h"
#include "runtime/ops/activation.h"
#include "runtime/ops/fp8_scales.h"

namespace evenkeel {

enum class PositionKind { kNone, kRope, kLrpe, kUrpe };
enum class CoreKind { kSoftmax, kLightning, kBlockSoftmax, kBlockRelu };

// The places of one product's operands among FP8 scales; null: the product is not in FP8.
struct Fp8LinearSlots {
  Fp8Slot x, w, dy;
};

// Heads and intermediate size are those of a tensor-parallel rank.
struct BlockSpec {
  int64_t hidden_size = 0;        // C
  int64_t num_heads = 0;          // H
  int64_t num_kv_heads = 0;       // G
  int64_t head_size = 0;          // D: of v and of q, k as projected
  int64_t intermediate_size = 0;  // F
  double norm_eps = 0;

  bool has_activation = false;  // of q and k
  Activation activation = Activation::kSilu;
  bool qk_norm = false;
  PositionKind position = PositionKind::kNone;
  CoreKind core = CoreKind::kSoftmax;
  double scale = 1;            // of the logits
  std::vector<double> slopes;  // decay of each head (lightning)
  bool gated = false;          // u times the attention output; u is the last part of the projection
  bool output_norm = false;    // norm over all heads of the attention output
  int64_t norm_columns = 0;    // of that norm, over all tensor-parallel ranks
  GatedUnit unit = GatedUnit::kSwiGlu;
  bool has_mlp_bias = false;
  int64_t block_size = 0;
  struct {
    Fp8LinearSlots in_proj, out_proj, mlp_pair, mlp_down;
  } fp8;

  int64_t q_width() const { return num_heads * head_size; }
  int64_t kv_width() const { return num_kv_heads * head_size; }
  // P: columns of the input projection.
  int64_t projection_width() const { return q_width() + 2 * kv_width() + (gated ? q_width() : 0); }
  // Head size of q and k inside core attention: LRPE doubles it.
  int64_t core_qk_size() const {
    return position == PositionKind::kLrpe ? 2 * head_size : head_size;
  }
  // Whether q and k go through more than a rotation between projection and core attention, so that
  // they need memory of their own. Rotations are done in place and undone on the gradient.
  bool copies_qk() const {
    return has_activation || qk_norm || position == PositionKind::kLrpe ||
           position == PositionKind::kUrpe;
  }
  bool has_lse() const { return core == CoreKind::kSoftmax || core == CoreKind::kBlockSoftmax; }
};

// Of layer `layer` of the model, on a rank that holds `part`.
BlockSpec MakeBlockSpec(const ModelConfig& config, const ModelPart& part, int64_t layer);
// On a rank that holds everything.
BlockSpec MakeBlockSpec(const ModelConfig& config, int64_t layer);

}  // namespace evenkeel
