// The factor that a tensor is multiplied with on its way to FP8, for the host and for kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/base/host_device.h"

namespace evenkeel {

// The largest finite numbers of the two formats.
constexpr float kLargestE4M3 = 448.0f;
constexpr float kLargestE5M2 = 57344.0f;

// The largest power of two that keeps amax * scale within `largest`: multiplying with it rounds
// nothing, and leaves room for up to twice of amax. 1 where amax is 0 or not finite; at most 2^100.
EK_HOST_DEVICE inline float Fp8ScaleOf(float amax, float largest) {
  constexpr float kMost = 1.2676506002282294e30f;  // 2^100
  constexpr float kLargestFloat = 3.4028234663852886e38f;
  if (!(amax > 0.0f) || amax > kLargestFloat) return 1.0f;
  const float ratio = largest / amax;
  if (!(ratio < kMost)) return kMost;
  uint32_t bits;
  std::memcpy(&bits, &ratio, sizeof(bits));
  bits &= 0x7f800000u;  // of a normal number the power of two it begins with
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return scale;
}

}  // namespace evenkeel
