// Sums over a whole array on CUDA: float32 terms, float64 partial sums in an order that depends on
// the size alone, the result left in device memory so that the host need not wait for it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace evenkeel {

struct SumParams {
  int64_t n = 0;
  const float* x = nullptr;   // [n]
  bool squares = false;       // add up x^2
  bool accumulate = false;    // add to *sum rather than replace it
  double* sum = nullptr;      // [1]
  void* workspace = nullptr;  // SumWorkspaceBytes, aligned to 8
};

size_t SumWorkspaceBytes(int64_t n);

cudaError_t LaunchSum(const SumParams& params, cudaStream_t stream);

// From the sum of squares of all gradients:
//   norm = sqrt(sum);  factor = max_norm > 0 and norm > max_norm ? max_norm / norm : 1
// and factor = -1, which AdamW takes as "update nothing", where the norm is not finite.
struct ClipFactorParams {
  const double* sum_of_squares = nullptr;  // [1]
  double max_norm = 0.0;
  double* norm = nullptr;   // [1]; not finite where the sum is not
  float* factor = nullptr;  // [1]
};

cudaError_t LaunchClipFactor(const ClipFactorParams& params, cudaStream_t stream);

}  // namespace evenkeel
