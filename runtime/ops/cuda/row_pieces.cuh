// How the kernels read and write rows of bf16: pieces of 8 elements, 16 bytes, which stay packed in
// registers until they are used, and sums over the threads that share a row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/ops/cuda/row_strides.h"

namespace evenkeel::row_pieces {

using Bf16 = __nv_bfloat16;

constexpr int kPiece = 8;  // elements of 16 bytes

__device__ __forceinline__ uint4 LoadPiece(const Bf16* p) {
  return *reinterpret_cast<const uint4*>(p);
}

// To global memory, in one instruction: an assignment nvcc sometimes takes apart into four of a
// word each, which cost a kernel a quarter of its speed.
__device__ __forceinline__ void StorePiece(Bf16* p, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void UnpackPair(uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ void Unpack(uint4 v, float (&x)[kPiece]) {
  UnpackPair(v.x, x[0], x[1]);
  UnpackPair(v.y, x[2], x[3]);
  UnpackPair(v.z, x[4], x[5]);
  UnpackPair(v.w, x[6], x[7]);
}

__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ uint4 Pack(const float (&x)[kPiece]) {
  return make_uint4(PackPair(x[0], x[1]), PackPair(x[2], x[3]), PackPair(x[4], x[5]),
                    PackPair(x[6], x[7]));
}

__device__ __forceinline__ void LoadFloats(const float* p, float (&x)[kPiece]) {
  const float4 a = reinterpret_cast<const float4*>(p)[0];
  const float4 b = reinterpret_cast<const float4*>(p)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void StoreFloats(float* p, const float (&x)[kPiece]) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// What a thread loads at once: 8 elements, or one where rows are odd.
template <int kWidth>
struct Unit;
template <>
struct Unit<kPiece> {
  using Packed = uint4;
  static __device__ __forceinline__ Packed Load(const Bf16* p) { return LoadPiece(p); }
  static __device__ __forceinline__ void Open(Packed v, float (&x)[kPiece]) { Unpack(v, x); }
  static __device__ __forceinline__ void Store(Bf16* p, const float (&x)[kPiece]) {
    StorePiece(p, Pack(x));
  }
};
template <>
struct Unit<1> {
  using Packed = Bf16;
  static __device__ __forceinline__ Packed Load(const Bf16* p) { return *p; }
  static __device__ __forceinline__ void Open(Packed v, float (&x)[1]) {
    x[0] = __bfloat162float(v);
  }
  static __device__ __forceinline__ void Store(Bf16* p, const float (&x)[1]) {
    *p = __float2bfloat16(x[0]);
  }
};

// exp(x) to two units in the last place or so, in two instructions.
__device__ __forceinline__ float FastExp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

__device__ __forceinline__ float Sigmoid(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + FastExp(-x)));
  return y;
}

// Sum over the warp, in every lane.
template <typename T>
__device__ __forceinline__ T WarpSum(T v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// Two numbers that are summed at once, with the barriers of one.
struct FloatPair {
  float first, second;

  __device__ __forceinline__ FloatPair& operator+=(const FloatPair& other) {
    first += other.first;
    second += other.second;
    return *this;
  }
};

__device__ __forceinline__ FloatPair WarpSum(const FloatPair& v) {
  return {WarpSum(v.first), WarpSum(v.second)};
}

// Sum over the kWarps warps that share a row, in every thread; with several warps they are the
// whole block. scratch [kWarps] is shared memory.
template <int kWarps, typename T>
__device__ __forceinline__ T TeamSum(T v, T* scratch) {
  v = WarpSum(v);
  if constexpr (kWarps > 1) {
    __syncthreads();  // the sum before this one has been read
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) v += scratch[w];
  }
  return v;
}

__device__ __forceinline__ int64_t RowOffset(const RowStrides& strides, int64_t row,
                                             int64_t heads) {
  if (heads == 1) return row * strides.token;
  return row / heads * strides.token + row % heads * strides.head;
}

// Whether rows of `columns` elements at `p` (which may be null) consist of whole, aligned pieces.
inline bool HasPieces(const void* p, const RowStrides& strides, int64_t columns) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && strides.token % kPiece == 0 &&
         strides.head % kPiece == 0 && columns % kPiece == 0;
}
inline bool HasPieces(const void* p, int64_t stride, int64_t columns) {
  return HasPieces(p, RowStrides{stride, 0}, columns);
}

inline int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace evenkeel::row_pieces
