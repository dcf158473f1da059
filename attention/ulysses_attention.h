// Context parallelism by exchanging tokens for heads (DeepSpeed-Ulysses, Jacobs et al., 2023): each
// rank gets all tokens of some heads, computes them as if it were alone, and sends the results
// back. Query heads are divided evenly; where there are fewer key/value heads than ranks, several
// ranks get the same one. Bytes sent a rank and layer, with n ranks, S tokens of this rank and per
// head group w = H / n Dq + max(G / n, 1) (Dq + D) columns: forward (n - 1) S w there and about (n
// - 1) S H / n D back (and H / n float32 statistics), backward w and 2 H / n D (and the statistics)
// there and w back.
//
// Shapes: S tokens of this rank; q [S, H, Dq], k [S, G, Dq], v [S, G, D].
#pragma once

#include "attention/context_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// out [S, H, D]; lse [S, H]. All ranks of the plan's axis call it.
void UlyssesAttentionForward(const OpContext& context, const ContextPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse);

// dq, dk, dv are shaped like q, k, v.
void UlyssesAttentionBackward(const OpContext& context, const ContextPlan& plan, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                              TensorView dq, TensorView dk, TensorView dv);

}  // namespace evenkeel
