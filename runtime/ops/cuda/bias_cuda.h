// The gradient of a bias on CUDA, with the meaning of BiasBackward in runtime/ops/elementwise.h;
// sm_80 and later. The matrix product adds the bias itself. Fast for rows of
// multiples of 8 elements, aligned to 16 bytes; right for any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace evenkeel {

// dbias += sum over the rows of dy
struct BiasBackwardParams {
  int64_t tokens = 0;         // T
  int64_t columns = 0;        // C
  const void* dy = nullptr;   // bf16 [T, C]
  int64_t dy_stride = 0;      // elements between rows
  float* dbias = nullptr;     // [C], added to in an order that depends on the shape alone
  void* workspace = nullptr;  // BiasBackwardWorkspaceBytes, aligned to 16
};

// A row of float32 for every 64 tokens or more: some 500 KiB at most, or one row.
size_t BiasBackwardWorkspaceBytes(int64_t tokens, int64_t columns);

cudaError_t LaunchBiasBackward(const BiasBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
