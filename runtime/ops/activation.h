// Element-wise functions and gates, forward and backward. Rows may be strided; outputs may be one of
// the inputs unless said otherwise.
#pragma once

#include "runtime/ops/op_context.h"

namespace evenkeel {

enum class Activation {
  kSilu,    // x sigmoid(x)
  kElu,     // x > 0 ? x : exp(x) - 1            (TransNormer v1, T1)
  kOneElu,  // 1 + elu(x)                        (TransNormer v1, T2)
};

// y [T, C] = f(x). x and y may be [T, H, D].
void ActivationForward(const OpContext& context, Activation activation, ConstTensorView x,
                       TensorView y);
// dx = dy f'(x); x is the forward pass's input.
void ActivationBackward(const OpContext& context, Activation activation, ConstTensorView x,
                        ConstTensorView dy, TensorView dx);

// Gated units. `pair` [T, 2 F] holds the two branches side by side: gate (or first) in columns
// [0, F), up (or second) in [F, 2 F).
//   SwiGLU: h = silu(gate) up      (Llama)
//   SGLU:   h = first second       (TransNormerLLM)
enum class GatedUnit { kSwiGlu, kSglu };

// h [T, F]; h may not overlap pair.
void GatedUnitForward(const OpContext& context, GatedUnit unit, ConstTensorView pair, TensorView h);
// dpair [T, 2 F]; may be pair itself (overwritten).
void GatedUnitBackward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                       ConstTensorView dh, TensorView dpair);

}  // namespace evenkeel
