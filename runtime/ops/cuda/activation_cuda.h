// Element-wise functions and gated units on CUDA, with the meaning of runtime/ops/activation.h:
// bf16 tensors, float32 arithmetic; sm_80 and later. Fast for rows of multiples of 8 elements
// aligned to 16 bytes; right for any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/ops/activation_kind.h"

namespace evenkeel {

// Forward: y = f(x), dy null. Backward: y = dy f'(x).
struct ActivationParams {
  Activation activation = Activation::kSilu;
  int64_t tokens = 0;        // T
  int64_t columns = 0;       // C
  const void* x = nullptr;   // bf16 [T, C]
  const void* dy = nullptr;  // bf16 [T, C], or null
  void* y = nullptr;         // bf16 [T, C]; may be x or dy
  int64_t x_stride = 0;      // elements between rows
  int64_t dy_stride = 0;
  int64_t y_stride = 0;
};

cudaError_t LaunchActivation(const ActivationParams& params, cudaStream_t stream);

// Forward (dh null): h from pair. Backward: dpair from pair and dh, and h again if it is not null.
struct GatedUnitParams {
  GatedUnit unit = GatedUnit::kSwiGlu;
  int64_t tokens = 0;          // T
  int64_t columns = 0;         // F
  const void* pair = nullptr;  // bf16 [T, 2 F]
  void* h = nullptr;           // bf16 [T, F]; may be dh
  const void* dh = nullptr;    // bf16 [T, F]
  void* dpair = nullptr;       // bf16 [T, 2 F]; may be pair
  int64_t pair_stride = 0;
  int64_t h_stride = 0;
  int64_t dh_stride = 0;
  int64_t dpair_stride = 0;
};

cudaError_t LaunchGatedUnitForward(const GatedUnitParams& params, cudaStream_t stream);
cudaError_t LaunchGatedUnitBackward(const GatedUnitParams& params, cudaStream_t stream);

}  // namespace evenkeel
