// Lightning attention on CUDA with the meaning of attention/lightning_attention.h: per head, with
// lambda = exp(-slope), S_t = lambda S_{t-1} + k_t v_t^T and o_t = S_t^T q_t, the state starting
// anew at each document. bf16 tensors, float32 states and accumulation, sm_80 and later; heads of
// 128 have kernels of their own on compute capability 9.0.
//
// Shapes: T packed tokens, B documents, H heads, D head size of q and k, E of v, multiples of 8 up
// to 256. Rows are strided by multiples of 8 elements, heads are dense, pointers are aligned to 16
// bytes. Results are the same bit for bit from run to run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "attention/kernels/cuda/lightning_attention_plan.h"

namespace evenkeel {

struct LightningForwardParams {
  LightningPlanView plan;                // in device memory
  int num_heads = 0;                     // H
  int head_dim = 0;                      // D
  int value_dim = 0;                     // E
  const float* slopes = nullptr;         // [H], each >= 0
  const void* q = nullptr;               // bf16 [T, H, D]
  const void* k = nullptr;               // bf16 [T, H, D]
  const void* v = nullptr;               // bf16 [T, H, E]
  const float* initial_state = nullptr;  // [B, H, D, E], null for zero
  void* out = nullptr;                   // bf16 [T, H, E]
  float* final_state = nullptr;          // [B, H, D, E], null if not wanted; may be initial_state
  int64_t q_stride = 0;                  // elements between rows
  int64_t k_stride = 0;
  int64_t v_stride = 0;
  int64_t out_stride = 0;
  void* workspace = nullptr;  // LightningForwardWorkspaceBytes, aligned to 256
  bool portable = false;      // the kernels of sm_80 on any GPU
};

// Bytes of scratch memory: the states between segments.
size_t LightningForwardWorkspaceBytes(const LightningPlan& plan, int num_heads, int head_dim,
                                      int value_dim);

// Enqueues the forward pass. Returns cudaErrorInvalidValue for sizes outside the limits above.
cudaError_t LaunchLightningForward(const LightningForwardParams& params, cudaStream_t stream);

struct LightningBackwardParams {
  LightningForwardParams forward;       // out, final_state and workspace are not used
  const void* dout = nullptr;           // bf16 [T, H, E]
  const float* dfinal_state = nullptr;  // [B, H, D, E], null for zero
  void* dq = nullptr;                   // bf16 [T, H, D]
  void* dk = nullptr;                   // bf16 [T, H, D]
  void* dv = nullptr;                   // bf16 [T, H, E]
  float* dinitial_state = nullptr;      // [B, H, D, E], null if not wanted; may be dfinal_state
  int64_t dout_stride = 0;
  int64_t dq_stride = 0;
  int64_t dk_stride = 0;
  int64_t dv_stride = 0;
  void* workspace = nullptr;  // LightningBackwardWorkspaceBytes, aligned to 256
};

size_t LightningBackwardWorkspaceBytes(const LightningPlan& plan, int num_heads, int head_dim,
                                       int value_dim);

// Enqueues the backward pass. States are computed again from the inputs.
cudaError_t LaunchLightningBackward(const LightningBackwardParams& params, cudaStream_t stream);

// The two parts of it, with a workspace of LightningForwardWorkspaceBytes each: dq from k, v, dout
// and the initial state; dk, dv and dinitial_state from q, k, v, dout and dfinal_state. What a part
// does not name may be null.
cudaError_t LaunchLightningBackwardQuery(const LightningBackwardParams& params,
                                         cudaStream_t stream);
cudaError_t LaunchLightningBackwardKeyValue(const LightningBackwardParams& params,
                                            cudaStream_t stream);

// The states after all tokens from a state of zero: sum_t lambda^(n - 1 - t) k_t v_t^T. Reversed,
// of gradients, with q and dout as k and v: sum_t lambda^(t + 1) q_t dout_t^T.
struct LightningStateParams {
  LightningPlanView plan;         // in device memory
  int num_heads = 0;              // H
  int head_dim = 0;               // D
  int value_dim = 0;              // E
  const float* slopes = nullptr;  // [H], each >= 0
  const void* k = nullptr;        // bf16 [T, H, D]
  const void* v = nullptr;        // bf16 [T, H, E]
  int64_t k_stride = 0;           // elements between rows
  int64_t v_stride = 0;
  bool reversed = false;
  float* last_state = nullptr;  // [B, H, D, E]; zero for a document without tokens
  void* workspace = nullptr;    // LightningForwardWorkspaceBytes, aligned to 256
  bool portable = false;        // the kernels of sm_80 on any GPU
};

cudaError_t LaunchLightningStates(const LightningStateParams& params, cudaStream_t stream);

// A source of a combined state, `distance` tokens away.
struct StateSource {
  int32_t source;
  float distance;
};

// targets[t] = sum over i in [begins[t], begins[t + 1]), in this order, of
// exp(-slope distance_i) sources[source_i].
struct CombineStatesParams {
  const StateSource* terms = nullptr;  // in device memory, as are
  const int32_t* begins = nullptr;     // [num_targets + 1]
  const float* slopes = nullptr;       // [H], each >= 0
  const float* sources = nullptr;      // [N, H, size]
  float* targets = nullptr;            // [num_targets, H, size]
  int64_t num_targets = 0;
  int num_heads = 0;
  int64_t size = 0;  // of a state, a multiple of 4
};

cudaError_t LaunchCombineStates(const CombineStatesParams& params, cudaStream_t stream);

}  // namespace evenkeel
