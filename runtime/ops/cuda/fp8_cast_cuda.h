// Casts to FP8 on CUDA, as the operands of runtime/ops/fp8.h want them: rows, columns or both in
// one pass over bf16. Deterministic; sm_89 and later convert in hardware, earlier ones in software.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/ops/activation_kind.h"

namespace evenkeel {

// What becomes of one matrix [T, C]. Null pointers: not wanted; both null: the values are only
// measured.
struct Fp8Target {
  void* rows = nullptr;     // [T, C] bytes, dense
  void* columns = nullptr;  // [C, T'] bytes, dense, T' = T rounded up to 16
  float* amax = nullptr;    // raised to the largest absolute value
  const float* scale = nullptr;
};

struct Fp8CastParams {
  int64_t tokens = 0;       // T
  int64_t columns = 0;      // C, a multiple of 16
  const void* x = nullptr;  // bf16 [T, C], rows aligned to 16 bytes
  int64_t x_stride = 0;
  bool is_e5m2 = false;  // the format: E5M2, or E4M3
  Fp8Target y;
};
cudaError_t LaunchFp8Cast(const Fp8CastParams& params, cudaStream_t stream);

// h [T, F] from pair [T, 2 F]; with dh also dpair [T, 2 F]. h is E4M3, dpair E5M2.
struct Fp8GatedUnitParams {
  GatedUnit unit = GatedUnit::kSwiGlu;
  int64_t tokens = 0;          // T
  int64_t columns = 0;         // F, a multiple of 16
  const void* pair = nullptr;  // bf16, rows aligned to 16 bytes
  int64_t pair_stride = 0;
  const void* dh = nullptr;  // bf16 [T, F]; null: forward
  int64_t dh_stride = 0;
  Fp8Target h;
  Fp8Target dpair;
};
cudaError_t LaunchFp8GatedUnit(const Fp8GatedUnitParams& params, cudaStream_t stream);

// scale = Fp8ScaleOf(amax), inverse = 1 / scale, on the GPU.
cudaError_t LaunchFp8Scale(const float* amax, bool is_e5m2, float* scale, float* inverse,
                           cudaStream_t stream);

}  // namespace evenkeel
