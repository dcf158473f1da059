// Register tiles of the products inside a chunk of lightning attention: kTileRows rows by one or
// two vectors of columns, held in registers over the whole inner dimension. Operands are small,
// packed and padded (lightning_chunk.h), so that nothing here has an edge case.
#pragma once

#include <cstdint>
#include <utility>

#include "runtime/base/simd.h"

namespace evenkeel::lightning {

// 8 x 2 vectors leave room for the operands in 32 registers and hide the latency of the
// multiply-adds (4 cycles, 2 a cycle: 8 sums in flight); 4 x 2 does the same in 16 registers.
constexpr int kTileRows = simd::kVectorBytes == 64 ? 8 : 4;

template <typename T, int kVectors>
struct Tile {
  simd::Vec<T> sum[kTileRows][kVectors] = {};
};

// How the left operand is stored: a(i, k) at a[i * lda + k], or at a[k * lda + i].
enum class LeftLayout : bool { kRowMajor, kColumnMajor };

// tile += a b over k in [0, depth): a is kTileRows x depth, b is depth x (kVectors vectors) with
// rows ldb apart.
template <LeftLayout kLayout, typename T, int kVectors>
[[gnu::always_inline]] inline void MultiplyAdd(const T* a, int64_t lda, const T* b, int64_t ldb,
                                               int64_t depth, Tile<T, kVectors>& tile) {
  for (int64_t k = 0; k < depth; ++k) {
    simd::Vec<T> row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) row[j] = simd::Load(b + k * ldb + j * simd::kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const T left = kLayout == LeftLayout::kRowMajor ? a[i * lda + k] : a[k * lda + i];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) tile.sum[i][j] += left * row[j];
    }
  }
}

// a b + c in the rounding every update of a state uses, whichever loop it is in.
template <typename T>
[[gnu::always_inline]] inline simd::Vec<T> DecayedSum(T decay, simd::Vec<T> state,
                                                      simd::Vec<T> added) {
  return decay * state + added;
}

namespace internal {

// Lanes a0 b0 a1 b1 ... of the lower (kHigh = 0) or upper halves of a and b.
template <int kHigh, typename T, int... kLane>
[[gnu::always_inline]] inline simd::Vec<T> Interleave(simd::Vec<T> a, simd::Vec<T> b,
                                                      std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = simd::kLanes<T>;
  return __builtin_shufflevector(a, b, (kHigh * kLanes / 2 + kLane / 2 + kLane % 2 * kLanes)...);
}

}  // namespace internal

// Transposes the kLanes x kLanes block in `rows`: log2(kLanes) perfect shuffles of its rows.
template <typename T>
[[gnu::always_inline]] inline void TransposeBlock(simd::Vec<T> (&rows)[simd::kLanes<T>]) {
  constexpr int kLanes = simd::kLanes<T>;
  constexpr auto kSequence = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 4
  for (int width = 1; width < kLanes; width *= 2) {
    simd::Vec<T> next[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = internal::Interleave<0, T>(rows[i], rows[i + kLanes / 2], kSequence);
      next[2 * i + 1] = internal::Interleave<1, T>(rows[i], rows[i + kLanes / 2], kSequence);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

}  // namespace evenkeel::lightning
