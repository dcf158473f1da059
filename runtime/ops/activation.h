// Element-wise functions and gates, forward and backward. Rows may be strided; outputs may be one
// of the inputs unless said otherwise.
#pragma once

#include "runtime/ops/activation_kind.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// y [T, C] = f(x). x and y may be [T, H, D].
void ActivationForward(const OpContext& context, Activation activation, ConstTensorView x,
                       TensorView y);
// dx = dy f'(x); x is the forward pass's input.
void ActivationBackward(const OpContext& context, Activation activation, ConstTensorView x,
                        ConstTensorView dy, TensorView dx);

// Gated units. `pair` [T, 2 F] holds the two branches side by side: gate (or first) in columns
// [0, F), up (or second) in [F, 2 F).
// h [T, F]; h may not overlap pair.
void GatedUnitForward(const OpContext& context, GatedUnit unit, ConstTensorView pair, TensorView h);
// dpair [T, 2 F]; may be pair itself (overwritten). Unless it is empty, h [T, F] receives the
// forward pass's output again; it may be dh.
void GatedUnitBackward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                       ConstTensorView dh, TensorView dpair, TensorView h = TensorView());

}  // namespace evenkeel
