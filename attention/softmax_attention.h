// Core attention, softmax(scale Q K^T) V, over a list of tasks. Block-wise with an online softmax,
// so that memory is linear in length (Dao et al., FlashAttention, 2022; Milakov and Gimelshein,
// 2018).
//
// Shapes: T_q, T_kv rows of packed queries and keys; H query heads, G key/value heads, H a multiple
// of G, query head h reads key head h / (H / G); D head size of q and k, E of v.
#pragma once

#include "attention/attention_plan.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Forward. q [T_q, H, D], k [T_kv, G, D], v [T_kv, G, E], out [T_q, H, E], lse [T_q, H] (natural
// log; of the context's wide dtype). Rows may be strided, heads are dense. Writes out
// and lse at the tasks' query rows and nothing else. No two tasks of a call share a query row; keys
// may be shared. A task's results depend on its own rows alone, bit for bit.
void SoftmaxAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse);

// What the backward pass does to dk and dv at the tasks' key rows.
enum class KeyGradients {
  kAdd,        // adds, in the order of the list; on a GPU they are float32
  kWrite,      // writes the sum over the tasks; on a GPU they are bf16
  kWriteWide,  // the same, float32 on a GPU
};

// Backward of the same tasks. dout, dq are shaped like out and q; dk, dv like k and v. Writes dq at
// the tasks' query rows, and dk and dv as `mode` says, whatever the number of threads.
void SoftmaxAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                              TensorView dq, TensorView dk, TensorView dv,
                              KeyGradients mode = KeyGradients::kAdd);

}  // namespace evenkeel
