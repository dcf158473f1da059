// The pieces the attention kernels are made of: products of small tiles held in registers, exp2,
// and packing into padded, aligned scratch.
//
// Scores are kept transposed, [keys, queries], with queries in the lanes of a vector. The
// statistics of the online softmax are then lane-wise, nothing is ever reduced across lanes, and
// all five products of forward and backward read one operand as scalars (broadcast) and one as
// vectors, in the layouts they already have.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "runtime/base/simd.h"

namespace evenkeel {

// A tile of kTileRows x 2 vectors of accumulators: 16 registers of 32 hide the latency of 4 cycles
// on two multiply-add units; with 16 registers, 8 do.
constexpr int kTileRows = simd::kVectorBytes == 64 ? 8 : 4;
constexpr int kTileVecs = 2;

// Returns `n` rounded up to whole vectors (of T) or to whole tiles of rows.
template <typename T>
constexpr int64_t PaddedToLanes(int64_t n) {
  return (n + simd::kLanes<T> - 1) / simd::kLanes<T> * simd::kLanes<T>;
}
constexpr int64_t PaddedToRows(int64_t n) {
  return (n + kTileRows - 1) / kTileRows * kTileRows;
}

// acc[r][v] += sum over k < depth of a(r, k) b[k * b_stride + v lanes]. a is read as scalars: a(r,
// k) is a[r * a_stride + k] if kDepthContiguous, else a[k * a_stride + r].
template <bool kDepthContiguous, typename T, int kVecs>
[[gnu::always_inline]] inline void MultiplyTile(int64_t depth, const T* a, int64_t a_stride,
                                                const T* b, int64_t b_stride,
                                                simd::Vec<T> (&acc)[kTileRows][kVecs]) {
  for (int64_t k = 0; k < depth; ++k) {
    simd::Vec<T> row[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) row[v] = simd::Load<T>(b + k * b_stride + v * simd::kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const T x = kDepthContiguous ? a[r * a_stride + k] : a[k * a_stride + r];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] += x * row[v];
    }
  }
}

template <typename T, int kVecs>
[[gnu::always_inline]] inline void LoadTile(const T* c, int64_t stride,
                                            simd::Vec<T> (&acc)[kTileRows][kVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = simd::Load<T>(c + r * stride + v * simd::kLanes<T>);
  }
}

template <typename T, int kVecs>
[[gnu::always_inline]] inline void StoreTile(const simd::Vec<T> (&acc)[kTileRows][kVecs], T* c,
                                             int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) simd::Store<T>(c + r * stride + v * simd::kLanes<T>, acc[r][v]);
  }
}

// c[r, :] = c[r, :] * factor[r] + sum over k < depth of a(r, k) b[k, :], for kTileRows rows and
// `columns` columns, a multiple of the lanes. A null factor stands for ones.
template <bool kDepthContiguous, typename T, int kVecs>
[[gnu::always_inline]] inline void AccumulateTile(int64_t depth, const T* a, int64_t a_stride,
                                                  const T* b, int64_t b_stride, const T* factor,
                                                  T* c, int64_t c_stride) {
  simd::Vec<T> acc[kTileRows][kVecs];
  LoadTile<T, kVecs>(c, c_stride, acc);
  if (factor != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] *= factor[r];
    }
  }
  MultiplyTile<kDepthContiguous, T, kVecs>(depth, a, a_stride, b, b_stride, acc);
  StoreTile<T, kVecs>(acc, c, c_stride);
}

// Runs body.operator()<kVecs>(column) over `columns` columns, a multiple of the lanes.
template <typename T, typename Body>
[[gnu::always_inline]] inline void ForEachColumnTile(int64_t columns, const Body& body) {
  constexpr int64_t kWidth = kTileVecs * simd::kLanes<T>;
  int64_t column = 0;
  for (; column + kWidth <= columns; column += kWidth) body.template operator()<kTileVecs>(column);
  if (column < columns) body.template operator()<1>(column);
}

// 2^x for x at most a little above 0, lane by lane: within 2 units in the last place (float) or 4
// (double), exactly 1 at 0, exactly 0 below about -126.5 (-1022.5) and at -infinity; NaN stays NaN.
//   x = n + r, |r| <= 1/2; 2^r by a polynomial; 2^n built from its exponent bits
inline simd::Vec<float> Exp2(simd::Vec<float> x) {
  using V = simd::Vec<float>;
  using I = simd::IntOf<float>::type;
  const V lowest = V{} - 127.0f;  // where the exponent bits are 0, and so the result
  x = x < lowest ? lowest : x;
  const float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23 rounds to an integer; 127 biases it
  const V shifted = x + magic;
  const V r = x - (shifted - magic);
  // Minimax on [-1/2, 1/2] with p(0) = 1: relative error 2.6e-9.
  V p = V{} + 1.559467816e-4f;
  p = p * r + 1.3406643903e-3f;
  p = p * r + 9.6176929730e-3f;
  p = p * r + 5.5503103105e-2f;
  p = p * r + 2.4022652783e-1f;
  p = p * r + 6.9314721497e-1f;
  p = p * r + 1.0f;
  I bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  V scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

inline simd::Vec<double> Exp2(simd::Vec<double> x) {
  using V = simd::Vec<double>;
  using I = simd::IntOf<double>::type;
  const V lowest = V{} - 1023.0;
  x = x < lowest ? lowest : x;
  const double magic = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, and the bias
  const V shifted = x + magic;
  const V r = (x - (shifted - magic)) * 0.69314718055994530942;
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
  p = p * r + 1.0;
  p = p * r + 1.0;
  I bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 52;
  V scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

// Returns a.b over `size` elements.
template <typename T>
inline T Dot(const T* a, const T* b, int64_t size) {
  constexpr int kLanes = simd::kLanes<T>;
  simd::Vec<T> sum0 = {}, sum1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    sum0 += simd::Load<T>(a + i) * simd::Load<T>(b + i);
    sum1 += simd::Load<T>(a + i + kLanes) * simd::Load<T>(b + i + kLanes);
  }
  if (i + kLanes <= size) {
    sum0 += simd::Load<T>(a + i) * simd::Load<T>(b + i);
    i += kLanes;
  }
  T tail = 0;
  for (; i < size; ++i) tail += a[i] * b[i];
  return simd::Sum<T>(sum0 + sum1) + tail;
}

// The integer as wide as T.
template <typename T>
using LaneOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// 0, 1, 2, ... in the lanes of T's integers.
template <typename T>
inline typename simd::IntOf<T>::type LaneIndices() {
  typename simd::IntOf<T>::type indices;
  for (int i = 0; i < simd::kLanes<T>; ++i) indices[i] = i;
  return indices;
}

// Replaces the scores of keys that a query may not see by -infinity. acc holds kTileRows keys, the
// first of them number `key`, of queries 0, 1, ...; query i sees the keys below `visible` + i.
template <typename T, int kVecs>
[[gnu::always_inline]] inline void MaskTile(int64_t key, int64_t visible,
                                            simd::Vec<T> (&acc)[kTileRows][kVecs]) {
  const auto lanes = LaneIndices<T>();
  const simd::Vec<T> hidden = simd::Splat<T>(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      // Blocks are short, so the difference fits an int32.
      const auto first_seeing = static_cast<LaneOf<T>>(key + r - visible + 1 - v * simd::kLanes<T>);
      acc[r][v] = lanes >= first_seeing ? acc[r][v] : hidden;
    }
  }
}

// Copies `rows` rows of `columns` elements to dst [padded_rows, dst_stride], zero elsewhere.
template <typename T>
inline void PackRows(const T* src, int64_t src_stride, int64_t rows, int64_t columns,
                     int64_t padded_rows, T* dst, int64_t dst_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(dst + r * dst_stride, src + r * src_stride,
                static_cast<size_t>(columns) * sizeof(T));
    if (columns < dst_stride) {
      std::memset(dst + r * dst_stride + columns, 0,
                  static_cast<size_t>(dst_stride - columns) * sizeof(T));
    }
  }
  if (rows < padded_rows) {
    std::memset(dst + rows * dst_stride, 0,
                static_cast<size_t>((padded_rows - rows) * dst_stride) * sizeof(T));
  }
}

namespace internal {

// Lanes of a and b taken in turn, from the lower (kHigh = 0) or the upper half of each.
template <int kHigh, typename V, int... kIndex>
inline V InterleaveImpl(V a, V b, std::integer_sequence<int, kIndex...>) {
  constexpr int kCount = sizeof...(kIndex);
  return __builtin_shufflevector(a, b,
                                 (kIndex / 2 + kHigh * kCount / 2 + (kIndex % 2) * kCount)...);
}

}  // namespace internal

// Transposes a square of vectors: each pass rotates the bits of (row, lane) left by one.
template <typename T>
[[gnu::always_inline]] inline void TransposeSquare(simd::Vec<T> (&m)[simd::kLanes<T>]) {
  constexpr int kLanes = simd::kLanes<T>;
  using Sequence = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 4
  for (int width = kLanes; width > 1; width /= 2) {
    simd::Vec<T> turned[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      turned[2 * i] = internal::InterleaveImpl<0>(m[i], m[i + kLanes / 2], Sequence{});
      turned[2 * i + 1] = internal::InterleaveImpl<1>(m[i], m[i + kLanes / 2], Sequence{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) m[i] = turned[i];
  }
}

// Returns the sum over the lanes of each of kLanes vectors, one in each lane.
template <typename T>
[[gnu::always_inline]] inline simd::Vec<T> SumEach(simd::Vec<T> (&m)[simd::kLanes<T>]) {
  TransposeSquare<T>(m);
#pragma GCC unroll 4
  for (int width = simd::kLanes<T> / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) m[i] += m[i + width];
  }
  return m[0];
}

// dst[c, r] = factor * src[r, c] for c < padded columns, r < padded_rows; zero where src has none.
// `padded_rows` is a multiple of the lanes and dst has room for PaddedToLanes(columns) rows.
template <typename T>
inline void PackTransposed(const T* src, int64_t src_stride, int64_t rows, int64_t columns,
                           T factor, int64_t padded_rows, T* dst, int64_t dst_stride) {
  constexpr int kLanes = simd::kLanes<T>;
  for (int64_t r0 = 0; r0 < padded_rows; r0 += kLanes) {
    for (int64_t c0 = 0; c0 < columns; c0 += kLanes) {
      const int64_t valid_rows = std::clamp<int64_t>(rows - r0, 0, kLanes);
      const int64_t valid_columns = std::min<int64_t>(columns - c0, kLanes);
      simd::Vec<T> square[kLanes];
      if (valid_rows == kLanes && valid_columns == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          square[i] = simd::Load<T>(src + (r0 + i) * src_stride + c0) * factor;
        }
      } else {
        for (int i = 0; i < kLanes; ++i) {
          T row[kLanes] = {};
          for (int64_t c = 0; i < valid_rows && c < valid_columns; ++c) {
            row[c] = src[(r0 + i) * src_stride + c0 + c];
          }
          square[i] = simd::Load<T>(row) * factor;
        }
      }
      TransposeSquare<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) simd::Store<T>(dst + (c0 + i) * dst_stride + r0, square[i]);
    }
  }
}

}  // namespace evenkeel
