// The element-wise functions of runtime/ops/activation_kind.h in float32, their derivatives, and
// the gated units.
#pragma once

#include "runtime/ops/activation_kind.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel::row_pieces {

template <Activation kActivation>
__device__ __forceinline__ float Activate(float x) {
  if constexpr (kActivation == Activation::kSilu) return x * Sigmoid(x);
  if constexpr (kActivation == Activation::kElu) return x <= 0.0f ? expm1f(x) : x;
  return x <= 0.0f ? expf(x) : x + 1.0f;
}

template <Activation kActivation>
__device__ __forceinline__ void ActivateWithDerivative(float x, float& value, float& derivative) {
  if constexpr (kActivation == Activation::kSilu) {
    const float s = Sigmoid(x);
    value = x * s;
    derivative = s + value * (1.0f - s);
  } else {
    value = Activate<kActivation>(x);
    derivative = x <= 0.0f ? expf(x) : 1.0f;
  }
}

template <GatedUnit kUnit>
__device__ __forceinline__ float Gated(float gate, float up) {
  return kUnit == GatedUnit::kSwiGlu ? gate * Sigmoid(gate) * up : gate * up;
}

// Also returns the unit's value.
template <GatedUnit kUnit>
__device__ __forceinline__ float GatedGradient(float gate, float up, float dh, float& dgate,
                                               float& dup) {
  if constexpr (kUnit == GatedUnit::kSwiGlu) {
    const float s = Sigmoid(gate), silu = gate * s;
    dgate = dh * up * (s + silu * (1.0f - s));
    dup = dh * silu;
    return silu * up;
  }
  dgate = dh * up;
  dup = dh * gate;
  return gate * up;
}

}  // namespace evenkeel::row_pieces
