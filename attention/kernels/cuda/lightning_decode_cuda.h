// The decode step of lightning attention on CUDA: one token of each of a batch of sequences, in one
// kernel. Per sequence and head, with lambda = exp(-slope): S <- lambda S + k v^T, o = S^T q, with
// the new S. bf16 tensors, float32 states and sums, sm_80 and later.
//
// Shapes: B sequences, H heads, D head size of q and k, E of v, multiples of 8 up to 256. Rows are
// strided by multiples of 8 elements, heads are dense, pointers are aligned to 16 bytes. Results
// are the same bit for bit from run to run, and those of a sequence do not depend on the others of
// its batch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

struct LightningDecodeParams {
  int64_t num_sequences = 0;             // B
  int num_heads = 0;                     // H
  int head_dim = 0;                      // D
  int value_dim = 0;                     // E
  const float* slopes = nullptr;         // [H], each >= 0
  const void* q = nullptr;               // bf16 [B, H, D]
  const void* k = nullptr;               // bf16 [B, H, D]
  const void* v = nullptr;               // bf16 [B, H, E]
  const float* initial_state = nullptr;  // [B, H, D, E], null for zero
  void* out = nullptr;                   // bf16 [B, H, E]
  float* final_state = nullptr;          // [B, H, D, E], null if not wanted; may be initial_state
  int64_t q_stride = 0;                  // elements between rows
  int64_t k_stride = 0;
  int64_t v_stride = 0;
  int64_t out_stride = 0;
};

// Enqueues the step on the current device. Returns cudaErrorInvalidValue for sizes outside the
// limits above.
cudaError_t LaunchLightningDecode(const LightningDecodeParams& params, cudaStream_t stream);

}  // namespace evenkeel
