// Vectors of float or double as wide as the processor's registers, through the compiler's vector
// extension: one source for both types and for any instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace evenkeel::simd {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// A register of T. Arithmetic operators work on it lane by lane; a scalar operand is broadcast.
template <typename T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
constexpr int kLanes = VecOf<T>::kLanes;

// The integer vector with lanes as wide as T's: results of comparisons, exponent bits.
template <typename T>
struct IntOf;
template <>
struct IntOf<float> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct IntOf<double> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
inline Vec<T> Load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));  // compiles to one unaligned load
  return v;
}

template <typename T>
inline void Store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}

template <typename T>
inline Vec<T> Splat(T x) {
  return Vec<T>{} + x;
}

template <typename T>
inline T Sum(Vec<T> v) {
  // A fixed pairwise tree: the result does not depend on how the compiler would reduce it.
  T lanes[kLanes<T>];
  Store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <typename T>
inline T Max(Vec<T> v) {
  T lanes[kLanes<T>];
  Store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] < lanes[i + width] ? lanes[i + width] : lanes[i];
  }
  return lanes[0];
}

// Takes b where a or b is NaN.
template <typename T>
inline Vec<T> Max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// exp(x), lane by lane: within 1.1 units in the last place over the whole range; 0 for x below
// about -87.3 (float) or -708.3 (double, both before denormals); x above 88.37 (709) saturates at
// the value there, which is finite. NaN stays NaN.
//   x = n ln2 + r, |r| <= ln2/2 (Cody-Waite in two parts), exp(x) = 2^n p(r)
template <typename T>
inline Vec<T> Exp(Vec<T> x);

template <>
inline Vec<float> Exp<float>(Vec<float> x) {
  using V = Vec<float>;
  using I = IntOf<float>::type;
  const V lowest = V{} - 87.33654f, highest = V{} + 88.37f;
  const auto underflow = x < lowest;
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V shifted = x * 1.44269504088896341f + magic;
  const V n = shifted - magic;
  V r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  I bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const I scale_bits = (bits - 0x4B400000 + 127) << 23;
  V scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return underflow ? V{} : p * scale;
}

template <>
inline Vec<double> Exp<double>(Vec<double> x) {
  using V = Vec<double>;
  using I = IntOf<double>::type;
  const V lowest = V{} - 708.39, highest = V{} + 709.0;
  const auto underflow = x < lowest;
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const V shifted = x * 1.4426950408889634074 + magic;
  const V n = shifted - magic;
  V r = x - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  // Taylor to r^13: the remainder at ln2/2 is below 2^-57.
  V p = V{} + 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  I bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const I scale_bits = (bits - 0x4338000000000000LL + 1023) << 52;
  V scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return underflow ? V{} : p * scale;
}

}  // namespace evenkeel::simd
