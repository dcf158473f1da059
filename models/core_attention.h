// The middle piece of a block: core attention over the documents of the batch, whichever kind it is
// and however its tokens are spread over context-parallel ranks.
#pragma once

#include "models/block_spec.h"
#include "models/token_layout.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Inputs of core attention, or their gradients. T tokens; this rank's H query and G key/value
// heads.
struct CoreTensors {
  TensorView q;  // [T, H, Dq], Dq = D, or 2 D with LRPE
  TensorView k;  // [T, G, Dq]
  TensorView v;  // [T, G, D]
};

// What core attention leaves for its backward pass and for the output norm. Statistics are of the
// wide dtype.
struct CoreSaved {
  TensorView out;      // [T, H D]
  TensorView lse;      // [T, H], softmax
  TensorView states;   // [I, H, Dq, D], linear attention: what came from other ranks
  TensorView squares;  // [T] sums of squares of out over all tensor-parallel ranks' heads, where
                       // the output norm spans several ranks
};

// Allocates in the context's arena what the forward pass fills.
CoreSaved AllocateCore(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout);

void CoreForward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                 const CoreTensors& inputs, const CoreSaved& saved);

// Writes the gradients of the inputs, given dout [T, H D].
void CoreBackward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                  const CoreTensors& inputs, const CoreSaved& saved, ConstTensorView dout,
                  const CoreTensors& gradients);

}  // namespace evenkeel
