// Root-mean-square norms on CUDA, with what stands before and behind them fused in: the residual
// add, the gain (RMSNorm) or the gate (TransNormerLLM's u * srmsnorm(o)), and backward the gradient
// of the residual stream. Meaning and formulas of runtime/ops/norm.h; sm_80 and later.
//
// Tensors are bf16 [T, H, C] (H = 1: [T, C]); statistics and sums are float32. Fast for rows of
// multiples of 8 elements up to 16384, aligned to 16 bytes; right for any. One pass over memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "runtime/ops/cuda/row_strides.h"

namespace evenkeel {

// x_mid = x + delta (rounded to bf16);  r = rsqrt(mean(x_mid^2) + eps);  y = x_mid r m
// with m the gain, the gate or 1.
struct RmsNormForwardParams {
  int64_t tokens = 0;   // T
  int64_t heads = 1;    // H
  int64_t columns = 0;  // C
  float eps = 0.0f;
  const void* x = nullptr;      // bf16 [T, H, C]
  const void* delta = nullptr;  // bf16 [T, H, C], or null for none
  const void* gain = nullptr;   // bf16 [C], or null
  const void* gate = nullptr;   // bf16 [T, H, C], or null; not both
  void* x_mid = nullptr;        // bf16 [T, H, C], with delta only; may be x or delta
  void* y = nullptr;            // bf16 [T, H, C]; may be x, delta or gate
  RowStrides x_strides, delta_strides, gate_strides, x_mid_strides, y_strides;
};

// Enqueues the forward pass. Returns cudaErrorInvalidValue for negative sizes and for combinations
// excluded above.
cudaError_t LaunchRmsNormForward(const RmsNormForwardParams& params, cudaStream_t stream);

// r = rsqrt(mean(x^2) + eps), again: the rows are read anyway, so no statistics are kept.
// xh = x r;  d = dy m;  dx = dresidual + r (d - xh mean(xh d))
// dgain += sum over rows of dy xh;  dgate = dy xh
struct RmsNormBackwardParams {
  int64_t tokens = 0;               // T
  int64_t heads = 1;                // H
  int64_t columns = 0;              // C
  float eps = 0.0f;                 // the forward pass's
  const void* x = nullptr;          // bf16 [T, H, C]: the forward pass's x_mid (or x)
  const void* gain = nullptr;       // bf16 [C], or null
  const void* gate = nullptr;       // bf16 [T, H, C], or null
  const void* dy = nullptr;         // bf16 [T, H, C]
  const void* dresidual = nullptr;  // bf16 [T, H, C], or null for none
  void* dx = nullptr;               // bf16 [T, H, C]; may be dresidual, dy or x
  void* dgate = nullptr;            // bf16 [T, H, C], with gate; may be gate or dy (not dx)
  float* dgain = nullptr;           // [C], added to; with gain
  RowStrides x_strides, gate_strides, dy_strides, dresidual_strides, dx_strides, dgate_strides;
  void* workspace = nullptr;  // RmsNormBackwardWorkspaceBytes, aligned to 16; with gain only
};

// Bytes of scratch memory of a backward pass with a gain: about 400 rows of float32.
size_t RmsNormBackwardWorkspaceBytes(int64_t rows, int64_t columns);

// Enqueues the backward pass. dgain is summed in an order that depends on the shape alone.
cudaError_t LaunchRmsNormBackward(const RmsNormBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
