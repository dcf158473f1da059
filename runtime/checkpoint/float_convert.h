// Conversions between float and the two 16-bit formats that weights are stored in. Rounding is to
// nearest, ties to even; a NaN stays a NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace evenkeel {

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float FloatFromBF16(uint16_t bits) {
  return FloatOf(uint32_t{bits} << 16);
}

inline uint16_t BF16FromFloat(float value) {
  const uint32_t bits = BitsOf(value);
  // Rounding could carry a NaN's mantissa into infinity: set its quiet bit and cut instead.
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float FloatFromF16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
  if (exponent == 0x1f) return FloatOf(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return FloatOf(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
  return sign != 0 ? -magnitude : magnitude;
}

inline uint16_t F16FromFloat(float value) {
  const uint32_t sign = BitsOf(value) >> 16 & 0x8000, magnitude = BitsOf(value) & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {  // 2^-14: normal in both formats
    half = (magnitude - (uint32_t{112} << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {
    // At 0.5 a float's last place is 2^-24, the subnormal step: the addition does the rounding.
    half = BitsOf(FloatOf(magnitude) + 0.5f) - BitsOf(0.5f);
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace evenkeel
