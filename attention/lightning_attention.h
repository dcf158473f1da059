// Lightning attention: linear attention with one constant decay a head, computed chunk by chunk
// (Qin et al., "Lightning Attention-2", 2024, algorithms 3 and 4; TransNormerLLM, ICML 2024). Per
// head, with lambda = exp(-slope):
//   S_t = lambda S_{t-1} + k_t v_t^T          S [D, E], the state
//   o_t = S_t^T q_t                           no scale, no denominator
// Documents of a packed batch are kept apart: the state starts anew at each.
//
// Shapes: T packed tokens, B documents, H heads, D head size of q and k, E of v, any sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Forward. plan.cu_seqlens [B + 1] = {0, ..., T}, empty documents allowed; q, k [T, H, D]; v, out
// [T, H, E]; slopes [H], each >= 0 (0: no decay). initial_state [B, H, D, E], or empty for zero;
// final_state [B, H, D, E], or empty if not wanted (for a document without tokens it is the initial
// state); float32 beside bf16, else of q's dtype. final_state may be initial_state. Rows of q, k,
// v, out may be strided.
void LightningAttentionForward(const OpContext& context, const SequencePlan& plan,
                               absl::Span<const double> slopes, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                               TensorView out, TensorView final_state);

// Backward. dfinal_state is the gradient of final_state, or empty for zero. Writes dq, dk, dv
// (shaped like q, k, v) and, unless empty, dinitial_state [B, H, D, E]. The states inside are
// computed again from the inputs, so the forward pass saves nothing.
void LightningAttentionBackward(const OpContext& context, const SequencePlan& plan,
                                absl::Span<const double> slopes, ConstTensorView q,
                                ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                                ConstTensorView dout, ConstTensorView dfinal_state, TensorView dq,
                                TensorView dk, TensorView dv, TensorView dinitial_state);

// The two parts of the backward pass: dq waits for the state before this rank's tokens, dk, dv and
// dinitial_state for the gradient of the state after them. Apart, the exchange of the one hides
// behind the other. Together they do what LightningAttentionBackward does.
void LightningAttentionBackwardQuery(const OpContext& context, const SequencePlan& plan,
                                     absl::Span<const double> slopes, ConstTensorView k,
                                     ConstTensorView v, ConstTensorView initial_state,
                                     ConstTensorView dout, TensorView dq);
void LightningAttentionBackwardKeyValue(const OpContext& context, const SequencePlan& plan,
                                        absl::Span<const double> slopes, ConstTensorView q,
                                        ConstTensorView k, ConstTensorView v, ConstTensorView dout,
                                        ConstTensorView dfinal_state, TensorView dk, TensorView dv,
                                        TensorView dinitial_state);

// The decay slopes of TransNormerLLM as its released weights compute them: slope of head h in layer
// l of L is s_h (1 - l / (L - 1) + 1e-5), s_h the ALiBi slopes 2^(-8 (h + 1) / H) (with the usual
// interleaving when H is not a power of two). L = 1 counts as l = 0. Returns [num_heads] values.
std::vector<double> TransNormerSlopes(int64_t num_heads, int64_t layer, int64_t num_layers);

}  // namespace evenkeel
