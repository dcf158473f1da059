// Urpe, TransNormer v1's position encoding, on CUDA, with the meaning of runtime/ops/urpe.h: bf16
// tensors, float32 arithmetic; sm_80 and later. Heads are dense: a row is H D elements, or the
// columns of a wider projection. Fast where D is a multiple of 8 up to 256 and rows are aligned to
// 16 bytes; right for any even D.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace evenkeel {

// z = x - 2 u (u . x) in every head, then (z_2j, z_2j+1) turned by theta_j p_t.
struct UrpeForwardParams {
  int64_t tokens = 0;                  // T
  int64_t heads = 0;                   // H
  int64_t head_dim = 0;                // D, even
  const int64_t* positions = nullptr;  // [T]
  const float* theta = nullptr;        // [D/2]
  const float* reflection = nullptr;   // [D], a unit vector
  const void* x = nullptr;             // bf16 [T, H, D]
  void* y = nullptr;                   // bf16 [T, H, D]; may be x
  int64_t x_stride = 0;                // elements between tokens
  int64_t y_stride = 0;
};

cudaError_t LaunchUrpeForward(const UrpeForwardParams& params, cudaStream_t stream);

struct UrpeBackwardParams {
  int64_t tokens = 0;                  // T
  int64_t heads = 0;                   // H
  int64_t head_dim = 0;                // D, even
  const int64_t* positions = nullptr;  // [T]
  const float* theta = nullptr;        // [D/2]
  const float* reflection = nullptr;   // [D]
  const void* y = nullptr;             // bf16 [T, H, D]: the forward pass's output
  const void* dy = nullptr;            // bf16 [T, H, D]
  void* dx = nullptr;                  // bf16 [T, H, D]; may be dy
  float* dtheta = nullptr;    // [D/2], added to in an order that depends on the shape alone
  void* workspace = nullptr;  // UrpeBackwardWorkspaceBytes, aligned to 16
  int64_t y_stride = 0;
  int64_t dy_stride = 0;
  int64_t dx_stride = 0;
};

// At most 528 rows of D/2 float32.
size_t UrpeBackwardWorkspaceBytes(int64_t tokens, int64_t head_dim);

cudaError_t LaunchUrpeBackward(const UrpeBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
