// Context parallelism by gathering keys and values (WLB-LLM, Wang et al., 2025; Llama 3, 2024):
// each rank computes its own queries against the keys of all, which are taken into the order of the
// packed batch once they are there. Bytes sent a rank and layer, with W = G (Dq + D) columns of
// keys and values: forward (n - 1) S W, backward the same again and (n - 1) S W float32 numbers of
// their gradients, S this rank's tokens.
//
// Shapes: S tokens of this rank, T of the batch; q [S, H, Dq], k [S, G, Dq], v [S, G, D].
#pragma once

#include "attention/context_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// What attends within the tasks.
enum class TaskWeighting { kSoftmax, kRelu };

// out [S, H, D]; lse [S, H] unless kRelu. `tasks`: plan.tasks or plan.block_tasks. All ranks of the
// plan's axis call it.
void GatheredAttentionForward(const OpContext& context, const ContextPlan& plan,
                              const TaskPlan& tasks, TaskWeighting weighting, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              TensorView out, TensorView lse);

// dq, dk, dv are shaped like q, k, v.
void GatheredAttentionBackward(const OpContext& context, const ContextPlan& plan,
                               const TaskPlan& tasks, TaskWeighting weighting, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                               TensorView dq, TensorView dk, TensorView dv);

}  // namespace evenkeel
