// Lightning attention of sequences that are cut over context-parallel ranks: only states travel,
// whatever the lengths. Each rank computes what its pieces add to the state, the states meet (by
// one of the exchanges in context_plan.h), and each rank computes its outputs from the state before
// its pieces; documents that lie within a rank are computed meanwhile. The backward pass does the
// same with the gradients of states, from the other end, while the gradients of queries, which need
// none, are computed.
//
// Bytes sent a rank, layer and direction, float32 beside bf16: kGather (n - 1) a H D E with `a` the
// pieces of this rank that are continued elsewhere (one at most with contiguous tokens); kScan
// a H D E.
//
// Shapes: S tokens of this rank; q, k [S, H, D], v [S, H, E]; I pieces of this rank that continue
// an earlier piece.
#pragma once

#include "absl/types/span.h"
#include "attention/context_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// out [S, H, E]. states [I, H, D, E] (of the wide dtype) receives the states before those pieces,
// for the backward pass. All ranks of the plan's axis call it.
void SequenceParallelLightningForward(const OpContext& context, const ContextPlan& plan,
                                      absl::Span<const double> slopes, ConstTensorView q,
                                      ConstTensorView k, ConstTensorView v, TensorView out,
                                      TensorView states);

// Writes dq, dk, dv, shaped like q, k, v.
void SequenceParallelLightningBackward(const OpContext& context, const ContextPlan& plan,
                                       absl::Span<const double> slopes, ConstTensorView q,
                                       ConstTensorView k, ConstTensorView v, ConstTensorView states,
                                       ConstTensorView dout, TensorView dq, TensorView dk,
                                       TensorView dv);

}  // namespace evenkeel
