// Ring attention (Liu et al., 2023), with the tokens of each document dealt out in zigzag so that
// every step is balanced: keys and values go round the ranks, one rank's at a time, while each rank
// computes its queries against those that are there; partial results merge exactly. In the backward
// pass their gradients go round with them. Bytes sent a rank and layer, with W = G (Dq + D) columns
// of keys and values and S about the tokens of a rank: forward (n - 1) S W, backward the same again
// and n S W float32 numbers. Never more than the keys of two ranks are held.
//
// Shapes: S tokens of this rank; q [S, H, Dq], k [S, G, Dq], v [S, G, D].
#pragma once

#include "attention/context_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// out [S, H, D]; lse [S, H]. All ranks of the plan's axis call it.
void RingAttentionForward(const OpContext& context, const ContextPlan& plan, double scale,
                          ConstTensorView q, ConstTensorView k, ConstTensorView v, TensorView out,
                          TensorView lse);

// dq, dk, dv are shaped like q, k, v.
void RingAttentionBackward(const OpContext& context, const ContextPlan& plan, double scale,
                           ConstTensorView q, ConstTensorView k, ConstTensorView v,
                           ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                           TensorView dq, TensorView dk, TensorView dv);

}  // namespace evenkeel
