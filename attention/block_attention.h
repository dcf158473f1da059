// The local attention of TransNormer v1's DiagAttention layers (Qin et al., "The Devil in Linear
// Transformer", EMNLP 2022): each document is cut into blocks of `block` tokens from its first
// token on, and a token attends, causally, only to tokens of its own block.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Returns the blocks of a packed batch as tasks; with softmax attention this is variant T2.
// cu_seqlens [B + 1] = {0, ..., T}.
std::vector<AttentionTask> TasksOfBlocks(absl::Span<const int64_t> cu_seqlens, int64_t block);

// Variant T1 (ReLA): out = relu(scale Q K^T * causal mask) V over the same blocks, no denominator.
// q [T_q, H, D], k [T_kv, H, D], v [T_kv, H, E], out [T_q, H, E].
void ReluBlockAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               TensorView out);

// Writes dq, dk, dv (shaped like q, k, v) at the tasks' rows.
void ReluBlockAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                                ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                ConstTensorView dout, TensorView dq, TensorView dk, TensorView dv);

}  // namespace evenkeel
