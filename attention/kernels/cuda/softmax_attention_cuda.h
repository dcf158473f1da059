// Softmax core attention on CUDA, softmax(scale Q K^T) V over a list of tasks, with the meaning of
// attention/softmax_attention.h: bf16 tensors, float32 accumulation and statistics, sm_80 and
// later. Block-wise with an online softmax (Dao, FlashAttention-2, 2023), memory linear in length.
//
// Shapes: T_q, T_kv rows of packed queries and keys; H query heads, G key/value heads, H a multiple
// of G; D head size of q and k, E of v, multiples of 8 up to 256. Rows are strided by multiples of
// 8 elements, heads are dense, pointers are aligned to 16 bytes. Results are the same bit for bit
// from run to run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "attention/kernels/cuda/softmax_attention_plan.h"

namespace evenkeel {

// Enqueues what makes the tiles of a plan from its descriptors. `memory`: PlanMemoryBytes of device
// memory, which plan.bytes have been copied to; afterwards ViewOf it is what the launchers below
// take.
cudaError_t LaunchPlanTiles(const SoftmaxAttentionPlan& plan, void* memory, cudaStream_t stream);

struct SoftmaxForwardParams {
  SoftmaxAttentionPlanView plan;  // in device memory, made with TilingOf(max(D, E))
  int num_heads = 0;              // H
  int num_kv_heads = 0;           // G
  int head_dim = 0;               // D
  int value_dim = 0;              // E
  float scale = 1.0f;
  int64_t q_rows = 0;       // T_q
  int64_t kv_rows = 0;      // T_kv
  const void* q = nullptr;  // bf16 [T_q, H, D]
  const void* k = nullptr;  // bf16 [T_kv, G, D]
  const void* v = nullptr;  // bf16 [T_kv, G, E]
  void* out = nullptr;      // bf16 [T_q, H, E]
  float* lse = nullptr;     // float32 [T_q, H], dense, natural log
  int64_t q_stride = 0;     // elements between rows
  int64_t k_stride = 0;
  int64_t v_stride = 0;
  int64_t out_stride = 0;
  bool portable = false;  // the kernel of sm_80 on any GPU
};

// Enqueues the forward pass. Writes out and lse at the tasks' query rows and nothing else, but for
// the plan's tickets: launches of one plan's memory must not overlap. Returns cudaErrorInvalidValue
// for sizes outside the limits above.
cudaError_t LaunchSoftmaxForward(const SoftmaxForwardParams& params, cudaStream_t stream);

// What becomes of dk and dv at the tasks' key rows. A row's gradient is summed over the tasks
// before it goes to memory, so writing needs no zeros there and half the bytes of adding.
enum class KeyGradientMode {
  kAddFloat32,
  kWriteFloat32,
  kWriteBf16,
};

struct SoftmaxBackwardParams {
  SoftmaxForwardParams forward;  // with the plan's backward part; out and lse are read
  const void* dout = nullptr;    // bf16 [T_q, H, E]
  void* dq = nullptr;            // bf16 [T_q, H, D]
  void* dk = nullptr;            // [T_kv, G, D], float32 or bf16 as `mode` says
  void* dv = nullptr;            // [T_kv, G, E]
  KeyGradientMode mode = KeyGradientMode::kAddFloat32;
  int64_t dout_stride = 0;
  int64_t dq_stride = 0;
  int64_t dk_stride = 0;
  int64_t dv_stride = 0;
  void* workspace = nullptr;  // SoftmaxBackwardWorkspaceBytes, aligned to 256
};

// Bytes of scratch memory of one backward pass: about 4 D + 8 a query row and head.
size_t SoftmaxBackwardWorkspaceBytes(const SoftmaxAttentionPlan& plan, int num_heads, int head_dim,
                                     int value_dim);

// Enqueues the backward pass: dq is written at the tasks' query rows, dk and dv at their key rows.
// Contributions to a row are summed in a fixed order (ascending keys; tasks in the order of the
// list).
cudaError_t LaunchSoftmaxBackward(const SoftmaxBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
