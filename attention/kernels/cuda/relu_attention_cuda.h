// ReLU block attention on CUDA, relu(scale Q K^T * causal mask) V over a list of tasks, with the
// meaning of attention/block_attention.h (variant T1): bf16 tensors, float32 accumulation, sm_80
// and later. Made for the short tasks of block attention, which are at most a few hundred tokens.
//
// Shapes: T_q, T_kv rows of packed queries and keys; H heads on both sides; D head size of q and k,
// E of v, multiples of 8 up to 256. Rows are strided by multiples of 8 elements, heads are dense,
// pointers are aligned to 16 bytes. Results are the same bit for bit from run to run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/attention_task_type.h"
#include "attention/kernels/cuda/relu_attention_plan.h"

namespace evenkeel {

struct ReluAttentionForwardParams {
  const AttentionTask* tasks = nullptr;  // [num_tasks], in device memory; disjoint query rows
  int64_t num_tasks = 0;
  int num_heads = 0;  // H
  int head_dim = 0;   // D
  int value_dim = 0;  // E
  float scale = 1.0f;
  const void* q = nullptr;  // bf16 [T_q, H, D]
  const void* k = nullptr;  // bf16 [T_kv, H, D]
  const void* v = nullptr;  // bf16 [T_kv, H, E]
  void* out = nullptr;      // bf16 [T_q, H, E]
  int64_t q_stride = 0;     // elements between rows
  int64_t k_stride = 0;
  int64_t v_stride = 0;
  int64_t out_stride = 0;
};

// Enqueues the forward pass. Writes out at the tasks' query rows and nothing else. Returns
// cudaErrorInvalidValue for sizes outside the limits above.
cudaError_t LaunchReluAttentionForward(const ReluAttentionForwardParams& params,
                                       cudaStream_t stream);

struct ReluAttentionBackwardParams {
  ReluAttentionForwardParams forward;     // out is not read; tasks in the order of the plan
  const ReluTaskGroup* groups = nullptr;  // [num_groups], in device memory
  int64_t num_groups = 0;
  const void* dout = nullptr;  // bf16 [T_q, H, E]
  void* dq = nullptr;          // bf16 [T_q, H, D]
  void* dk = nullptr;          // bf16 [T_kv, H, D]
  void* dv = nullptr;          // bf16 [T_kv, H, E]
  int64_t dout_stride = 0;
  int64_t dq_stride = 0;
  int64_t dk_stride = 0;
  int64_t dv_stride = 0;
};

// Enqueues the backward pass: dq is written at the tasks' query rows, dk and dv at their key rows.
// Gradients do not overlap what is read.
cudaError_t LaunchReluAttentionBackward(const ReluAttentionBackwardParams& params,
                                        cudaStream_t stream);

}  // namespace evenkeel
