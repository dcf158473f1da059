// Maximum and sum of exponentials of a row of logits, the two halves of logsumexp. Private to this
// folder.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "runtime/ops/row_loops.h"

namespace evenkeel::softmax_rows {

using row_loops::LoadUpTo;
using row_loops::StoreUpTo;
using simd::Vec;

// Returns the largest of n logits, -inf of none; NaN if one of them is NaN.
template <typename T>
T MaxOrNan(const T* z, int64_t n) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  Vec<T> max = simd::Splat<T>(kLowest);
  typename simd::IntOf<T>::type is_nan = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec<T> v = simd::Load(z + i);
    max = simd::Max<T>(v, max);  // v > max is false for a NaN v: max stays clean
    is_nan |= v != v;
  }
  T best = simd::Max<T>(max);
  bool any_nan = false;
  for (int64_t j = 0; j < kLanes; ++j) any_nan |= is_nan[j] != 0;
  for (; i < n; ++i) {
    best = z[i] > best ? z[i] : best;
    any_nan |= std::isnan(z[i]);
  }
  return any_nan ? std::numeric_limits<T>::quiet_NaN() : best;
}

// Sum of exp(z - max); writes the terms to `terms`, which may be z, unless it is null.
template <typename T>
T ExpSum(const T* z, T max, int64_t n, T* terms) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  Vec<T> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    for (int64_t j = 0; j < 2; ++j) {
      const Vec<T> e = simd::Exp<T>(simd::Load(z + i + j * kLanes) - max);
      if (terms != nullptr) simd::Store<T>(terms + i + j * kLanes, e);
      sums[j] += e;
    }
  }
  for (; i < n; i += kLanes) {
    const int64_t left = n - i;
    Vec<T> e = simd::Exp<T>(LoadUpTo(z + i, left) - max);
    for (int64_t j = left; j < kLanes; ++j) e[j] = 0;
    if (terms != nullptr) StoreUpTo<T>(terms + i, e, left);
    sums[0] += e;
  }
  return simd::Sum<T>(sums[0] + sums[1]);
}

}  // namespace evenkeel::softmax_rows
