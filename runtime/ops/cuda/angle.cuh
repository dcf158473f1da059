// The angles of position encodings whose rates are trained.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// cos and sin of theta p, range reduced in float64 turns: exact enough at position one million.
__device__ __forceinline__ void AngleOf(float theta, int64_t position, float& c, float& s) {
  const double turns =
      static_cast<double>(theta) * 0.15915494309189533577 * static_cast<double>(position);
  sincospif(static_cast<float>(2.0 * (turns - rint(turns))), &s, &c);
}

}  // namespace evenkeel
