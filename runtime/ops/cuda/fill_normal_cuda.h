// Random numbers by a counter on CUDA, with the meaning of runtime/ops/fill_normal.h; sm_80 and
// later.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

struct FillNormalParams {
  uint64_t seed = 0;
  uint64_t stream = 0;
  int64_t first = 0;
  double scale = 1;
  int64_t count = 0;
  float* y = nullptr;  // [count]
};

cudaError_t LaunchFillNormal(const FillNormalParams& params, cudaStream_t stream);

}  // namespace evenkeel
