// The merge of partial softmax attention on CUDA, with the meaning of attention/merge_state.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// Rows [T, H, size] or [T, H]: elements between rows, and between the heads of a row.
struct StateStrides {
  int64_t row = 0;
  int64_t head = 0;
};

struct MergeStateParams {
  int64_t rows = 0;                // T
  int64_t heads = 0;               // H
  int64_t size = 0;                // E, dense
  const void* part_out = nullptr;  // [T, H, E], bf16 or float32
  bool part_is_bf16 = false;
  const float* part_lse = nullptr;  // [T, H]
  float* out = nullptr;             // [T, H, E]
  float* lse = nullptr;             // [T, H]
  StateStrides part_out_strides, part_lse_strides, out_strides, lse_strides;
};

// Enqueues the folding of part_out and part_lse into out and lse.
cudaError_t LaunchMergeState(const MergeStateParams& params, cudaStream_t stream);

// Enqueues out = 0, lse = -infinity; the part is not read.
cudaError_t LaunchSetIdentityState(const MergeStateParams& params, cudaStream_t stream);

}  // namespace evenkeel
