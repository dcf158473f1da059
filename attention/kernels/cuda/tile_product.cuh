// Products of tiles in shared memory (mma.cuh), one warp's part: acc += op(A) op(B), where acc
// covers 16 kM x 8 kN elements.
#pragma once

#include "attention/kernels/cuda/mma.cuh"

namespace evenkeel {

// The part of a tile that begins at (row, col). Columns read from there stay within the tile; if
// col is not a multiple of 64, they stay within the aligned power of two that col is a multiple of.
struct TilePart {
  uint32_t base;
  uint32_t lane;  // LaneOffset of the operand, shifted to the column
};

template <int kRows>
__device__ __forceinline__ TilePart PartAt(uint32_t tile, uint32_t lane_offset, int row, int col) {
  return {tile + (col / 64) * (kRows * 128) + row * 128, lane_offset ^ ((col % 64) * 2)};
}

// A [16 kM, kDepth], B [8 kN, kDepth]: acc += A B^T. a: rows first; b: columns first. kRowsA and
// kRowsB are the heights of the whole tiles.
template <int kRowsA, int kRowsB, int kDepth, int kM, int kN>
__device__ __forceinline__ void AddProductNT(float (&acc)[kM][kN][4], const TilePart& a_part,
                                             const TilePart& b_part) {
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      LoadMatrices(a[m], BlockAddress<kRowsA>(a_part.base, a_part.lane, m * 16, k));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, BlockAddress<kRowsB>(b_part.base, b_part.lane, n * 8, k));
#pragma unroll
      for (int m = 0; m < kM; ++m) MmaPair(acc[m][n], acc[m][n + 1], a[m], b);
    }
  }
}

// A [16 kM, kDepth], B [kDepth, 8 kN]: acc += A B. a and b: rows first.
template <int kRowsA, int kRowsB, int kDepth, int kM, int kN>
__device__ __forceinline__ void AddProductNN(float (&acc)[kM][kN][4], const TilePart& a_part,
                                             const TilePart& b_part) {
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      LoadMatrices(a[m], BlockAddress<kRowsA>(a_part.base, a_part.lane, m * 16, k));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(b, BlockAddress<kRowsB>(b_part.base, b_part.lane, k, n * 8));
#pragma unroll
      for (int m = 0; m < kM; ++m) MmaPair(acc[m][n], acc[m][n + 1], a[m], b);
    }
  }
}

// A [kDepth, 16 kM], B [kDepth, 8 kN]: acc += A^T B. a: columns first; b: rows first.
template <int kRowsA, int kRowsB, int kDepth, int kM, int kN>
__device__ __forceinline__ void AddProductTN(float (&acc)[kM][kN][4], const TilePart& a_part,
                                             const TilePart& b_part) {
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      LoadMatricesTransposed(a[m], BlockAddress<kRowsA>(a_part.base, a_part.lane, k, m * 16));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(b, BlockAddress<kRowsB>(b_part.base, b_part.lane, k, n * 8));
#pragma unroll
      for (int m = 0; m < kM; ++m) MmaPair(acc[m][n], acc[m][n + 1], a[m], b);
    }
  }
}

}  // namespace evenkeel
