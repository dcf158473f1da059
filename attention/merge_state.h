// The exact merge of partial softmax attention over disjoint sets of keys (Infinite-LLM, Lin et
// al., 2024; FlashInfer, Ye et al., 2025). With partial results (out_i, lse_i):
//   lse = log(sum_i exp(lse_i));   out = sum_i exp(lse_i - lse) out_i
// Associative, with the identity lse = -infinity, out = 0 ("no keys"). Rounding is not associative:
// callers fold partial results in ascending key order, never in arrival order, so that results do
// not depend on timing.
#pragma once

#include "runtime/ops/op_context.h"

namespace evenkeel {

// Folds (part_out, part_lse) into (out, lse). out, part_out [T, H, E]; lse, part_lse [T, H]; all of
// the wide dtype, but part_out may be bf16 on a GPU, as attention writes it. Where part_lse is
// -infinity, part_out is not read; where lse is, out is not. When all parts are folded, a Copy
// (runtime/ops/elementwise.h) brings out to the dtype of activations.
void MergeState(const OpContext& context, ConstTensorView part_out, ConstTensorView part_lse,
                TensorView out, TensorView lse);

// Sets (out, lse) to the identity. An empty `out` leaves it alone: of a part without keys it is not
// read.
void SetIdentityState(const OpContext& context, TensorView out, TensorView lse);

}  // namespace evenkeel
