// Root-mean-square norms over the last dimension: RMSNorm with a learned gain (Llama), and
// SimpleRMSNorm (SRMSNorm, TransNormerLLM), which has none.
//   r = rsqrt(mean(x^2) + eps);  y = x r g
//   backward: xh = x r;  dx = r (dy g - xh mean(xh dy g));  dg = sum over rows of dy xh
#pragma once

#include "runtime/ops/op_context.h"

namespace evenkeel {

// Shapes: x, y [T, C], or [T, H, C] for a norm per head; gain [C], or empty for none. y may be x.
void RmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                    TensorView y);

// dx = gradient, or dx += gradient if `accumulate`; dx may be dy (then without `accumulate`).
// dgain [C] += gradient, summed over all rows in an order that depends on the shape alone; empty
// when gain is.
void RmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                     ConstTensorView dy, TensorView dx, bool accumulate, TensorView dgain);

// y = x r gate, the output norm and gate of TransNormerLLM. x, gate, y [T, C]; y may be x or gate.
void GatedRmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                         double eps, TensorView y);

// dx = the norm's backward pass of dy gate; dgate = dy x r. dx may be dy; dgate may be neither.
void GatedRmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                          double eps, ConstTensorView dy, TensorView dx, TensorView dgate);

}  // namespace evenkeel
