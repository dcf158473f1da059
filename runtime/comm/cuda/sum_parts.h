// Sums of what several ranks hold of the same rows. Internal to runtime/comm.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

constexpr int kMaxParts = 16;

struct SumPartsParams {
  const void* parts[kMaxParts] = {};  // each [count], aligned to 16 bytes
  int num_parts = 0;
  void* out = nullptr;   // [count], aligned to 16 bytes; may be one of the parts
  int64_t count = 0;     // elements, a multiple of 16 bytes
  bool is_bf16 = false;  // else float32
};

// out = the sum of the parts in their order, in float32, rounded once.
cudaError_t LaunchSumParts(const SumPartsParams& params, cudaStream_t stream);

}  // namespace evenkeel
