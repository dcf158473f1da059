// Position encodings of q and k: rotary embeddings (RoPE) with the scalings of Llama 3 and YaRN,
// and LRPE of TransNormerLLM. Angles are computed in float64 and rounded once, so position one
// million is as exact as position one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/ops/activation_kind.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

enum class RopeScalingKind { kNone, kLinear, kLlama3, kYarn };

// As in a Hugging Face config's rope_scaling; fields a kind does not use are ignored.
struct RopeConfig {
  double theta = 10000;
  RopeScalingKind scaling = RopeScalingKind::kNone;
  double factor = 1;
  double low_freq_factor = 1;                      // llama3
  double high_freq_factor = 4;                     // llama3
  double original_max_position_embeddings = 8192;  // llama3, yarn
  double beta_fast = 32;                           // yarn
  double beta_slow = 1;                            // yarn
  double attention_factor = 0;  // yarn: scale of cos and sin; 0 = 0.1 ln(factor) + 1
};

// Returns the head_dim / 2 inverse frequencies, after scaling.
std::vector<double> RopeInverseFrequencies(const RopeConfig& config, int64_t head_dim);

// Returns what cos and sin are multiplied by (1 but for yarn).
double RopeAttentionFactor(const RopeConfig& config);

// Fills cos and sin [T, D/2] with attention_factor * cos/sin(position[t] * inverse_frequency[j]).
void RopeTable(const OpContext& context, Positions positions,
               absl::Span<const double> inverse_frequencies, double attention_factor,
               TensorView cos, TensorView sin);

// Rotates x [T, H, D] in place, the rotate-half convention of Hugging Face (dimension j pairs with
// j + D/2):  (a, b) -> (a cos - b sin, b cos + a sin). With `inverse` the transposed rotation,
// which is the backward pass. cos, sin [T, D/2].
void ApplyRope(const OpContext& context, ConstTensorView cos, ConstTensorView sin, bool inverse,
               TensorView x);

// LRPE of an activated input, a = f(x): y[t,h] = concat(a cos(theta_h p_t), a sin(theta_h p_t)).
// x [T, H, D], theta [H, D] (of the context's wide dtype), positions [T], y [T, H, 2 D].
void ActivatedLrpeForward(const OpContext& context, Activation activation, ConstTensorView x,
                          ConstTensorView theta, Positions positions, TensorView y);

// dx [T, H, D] = gradient; dtheta [H, D] += gradient, in an order that depends on the shape alone.
void ActivatedLrpeBackward(const OpContext& context, Activation activation, ConstTensorView x,
                           ConstTensorView theta, Positions positions, ConstTensorView dy,
                           TensorView dx, TensorView dtheta);

// The same without the activation, on the CPU alone: y[t,h] = concat(x cos(theta_h p_t), x
// sin(theta_h p_t)).
void LrpeForward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                 absl::Span<const int64_t> positions, TensorView y);
void LrpeBackward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                  absl::Span<const int64_t> positions, ConstTensorView dy, TensorView dx,
                  TensorView dtheta);

}  // namespace evenkeel
