// Norm, and gate, of rows whose columns are split over ranks, on CUDA, with the meaning of
// runtime/ops/split_norm.h; sm_80 and later. Tensors are bf16 [T, C], statistics and sums float32
// [T]. Fast for rows of multiples of 8 elements, aligned to 16 bytes; right for any. Everything is
// read once and written once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// sums = sum of x^2 over the columns here
struct RowSquaresParams {
  int64_t tokens = 0;       // T
  int64_t columns = 0;      // C
  const void* x = nullptr;  // bf16 [T, C]
  int64_t x_stride = 0;     // elements between rows
  float* sums = nullptr;    // [T]
};

cudaError_t LaunchRowSquares(const RowSquaresParams& params, cudaStream_t stream);

// What the passes below share.
struct SplitNormRows {
  int64_t tokens = 0;        // T
  int64_t columns = 0;       // C, here
  float all_columns = 0.0f;  // of all ranks
  float eps = 0.0f;
  const void* x = nullptr;      // bf16 [T, C]
  const void* gate = nullptr;   // bf16 [T, C], or null
  const float* sums = nullptr;  // [T], of all ranks
  int64_t x_stride = 0, gate_stride = 0;
};

// y = x r gate, r = rsqrt(sums / all_columns + eps)
struct SplitNormForwardParams {
  SplitNormRows rows;
  void* y = nullptr;  // bf16 [T, C]; may be x or gate
  int64_t y_stride = 0;
};

cudaError_t LaunchSplitNormForward(const SplitNormForwardParams& params, cudaStream_t stream);

// dots = sum of xh dy gate over the columns here, xh = x r
struct SplitNormDotsParams {
  SplitNormRows rows;
  const void* dy = nullptr;  // bf16 [T, C]
  int64_t dy_stride = 0;
  float* dots = nullptr;  // [T]
};

cudaError_t LaunchSplitNormDots(const SplitNormDotsParams& params, cudaStream_t stream);

// dx = r (dy gate - xh dots / all_columns);  dgate = dy xh
struct SplitNormBackwardParams {
  SplitNormRows rows;
  const void* dy = nullptr;     // bf16 [T, C]
  const float* dots = nullptr;  // [T], of all ranks
  void* dx = nullptr;           // bf16 [T, C]; may be dy
  void* dgate = nullptr;        // bf16 [T, C], with gate; may be gate (not dx)
  int64_t dy_stride = 0, dx_stride = 0, dgate_stride = 0;
};

cudaError_t LaunchSplitNormBackward(const SplitNormBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
