// States of lightning attention for a sequence that is cut over ranks (LASP-2, Sun et al., 2025;
// ZeCO, Chou et al., 2025). A piece of n tokens maps the state before it to lambda^n times that
// state plus what its own tokens add. So every rank computes what its piece adds, the ranks
// exchange that, and each combines what is before its piece:
//   S_in(r) = sum_{j < r} lambda^(tokens between the end of piece j and piece r) M_j
// and likewise, from the other end, for the gradients of states.
//
// Shapes: T packed tokens, B sequences (or pieces of them), H heads, D head size of q and k, E of
// v. States are float32 beside bf16, else of the dtype of q, k and v.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Writes final_state [B, H, D, E]: the states after k [T, H, D] and v [T, H, E] from a state of
// zero. About a third of the work of LightningAttentionForward. A sequence without tokens gets
// zero.
void LightningStateForward(const OpContext& context, const SequencePlan& plan,
                           absl::Span<const double> slopes, ConstTensorView k, ConstTensorView v,
                           TensorView final_state);

// Writes dinitial_state [B, H, D, E]: the gradients of the initial states from q [T, H, D] and dout
// [T, H, E] alone, as if dfinal_state were zero. A sequence without tokens gets zero.
void LightningStateBackward(const OpContext& context, const SequencePlan& plan,
                            absl::Span<const double> slopes, ConstTensorView q,
                            ConstTensorView dout, TensorView dinitial_state);

// sources[source], decayed by `distance` >= 0 tokens, is added to targets[target].
struct StateTerm {
  int64_t target = 0;
  int64_t source = 0;
  int64_t distance = 0;
};

// targets[t] = sum, in the order of the list, of exp(-slope_h distance) sources[source] over the
// terms of t; zero without any. `terms` is sorted by target. sources [N, H, D, E] and targets [M,
// H, D, E] are dense, of the wide dtype, and do not overlap.
void CombineStates(const OpContext& context, absl::Span<const double> slopes,
                   absl::Span<const StateTerm> terms, ConstTensorView sources, TensorView targets);

}  // namespace evenkeel
