// Tensor-core pieces shared by the attention kernels: bf16 matrix products of 16 x 8 x 16 with
// float32 accumulation, and tiles in shared memory that feed them without bank conflicts (sm_80 and
// later).
//
// A tile [rows][cols] of bf16 lies in panels of 64 columns: a panel row is 128 bytes, eight chunks
// of 16 bytes, and chunk c of row r is stored at place c ^ (r & 7). Eight rows of one chunk column
// then fall into distinct banks, and it is the layout of the bulk copy engine's 128-byte swizzle.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace evenkeel {

using Bf16 = __nv_bfloat16;

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ float2 UnpackBf16(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// c [16, 8] += a [16, 16] b [16, 8]. Lane l holds c at rows l / 4 (c[0], c[1]) and l / 4 + 8 (c[2],
// c[3]), columns 2 (l % 4) and the next.
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// The lane's part of an address of four 8 x 8 matrices that cover 16 rows and 16 columns of a tile.
// `rows_first`: matrices 0, 1 are the two row halves of the left columns (operand a as stored,
// operand b transposed); otherwise they are the two column halves of the upper rows (a transposed,
// b as stored).
__device__ __forceinline__ uint32_t LaneOffset(int lane, bool rows_first) {
  const int r = lane & 7, low = (lane >> 3) & 1, high = lane >> 4;
  const int row = r + 8 * (rows_first ? low : high);
  const int chunk = rows_first ? high : low;
  return row * 128 + ((chunk ^ r) << 4);
}

// Address of the 16 x 16 block at (row, col), multiples of 16, of a tile of kRows rows at `base`.
template <int kRows>
__device__ __forceinline__ uint32_t BlockAddress(uint32_t base, uint32_t lane_offset, int row,
                                                 int col) {
  return base + (col / 64) * (kRows * 128) + row * 128 + (lane_offset ^ ((col % 64) * 2));
}

// Byte offset of element (row, col) in a tile of kRows rows.
template <int kRows>
__device__ __forceinline__ uint32_t ElementOffset(int row, int col) {
  const int chunk = (col >> 3) & 7;
  return (col >> 6) * (kRows * 128) + row * 128 + ((chunk ^ (row & 7)) << 4) + (col & 7) * 2;
}

__device__ __forceinline__ void CopyAsync16(uint32_t shared, const void* global, bool valid) {
  // A source size of 0 writes 16 zero bytes and reads nothing.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(valid ? 16 : 0));
}

__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;");
}

template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Starts copying rows [0, rows) and 16-byte chunks [0, chunks) of `global` (row stride in elements,
// may be negative) into a tile; the rest of the tile becomes zero.
template <int kRows, int kCols, int kThreads>
__device__ __forceinline__ void LoadTile(uint32_t shared, const Bf16* global, int64_t stride,
                                         int rows, int chunks, int thread) {
  constexpr int kChunks = kCols / 8;
  constexpr int kRowStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowStep == 0);
  const int chunk = thread % kChunks, first = thread / kChunks;
  const Bf16* source = global + first * stride + chunk * 8;
  const bool chunk_valid = chunk < chunks;
#pragma unroll
  for (int i = 0; i < kRows / kRowStep; ++i) {
    const int row = first + i * kRowStep;
    const bool valid = chunk_valid && row < rows;
    CopyAsync16(shared + ElementOffset<kRows>(row, chunk * 8),
                valid ? source + int64_t{i} * kRowStep * stride : global, valid);
  }
}

// a, b: the operands' 16 x 16 fragments; c0, c1: two neighbouring 16 x 8 accumulators.
__device__ __forceinline__ void MmaPair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[4]) {
  Mma(c0, a, b[0], b[1]);
  Mma(c1, a, b[2], b[3]);
}

// Two neighbouring accumulators, rounded, as the 16 x 16 operand a of the next product.
__device__ __forceinline__ void AccumulatorsAsOperand(uint32_t (&a)[4], const float (&c0)[4],
                                                      const float (&c1)[4]) {
  a[0] = PackBf16(c0[0], c0[1]);
  a[1] = PackBf16(c0[2], c0[3]);
  a[2] = PackBf16(c1[0], c1[1]);
  a[3] = PackBf16(c1[2], c1[3]);
}

__device__ __forceinline__ void StoreShared4(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ uint4 LoadShared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

}  // namespace evenkeel
