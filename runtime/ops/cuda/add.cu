// A thread takes two units of 8 elements, a block's width apart, and loads both before it adds.
// Rows are any number of units long, the last of which may be partial, so the work is cut
// regardless of where rows end.
#include "runtime/ops/cuda/add_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;
constexpr int kPerThread = 2;

// 8 elements, packed until they are added.
template <typename T>
struct Eight;
template <>
struct Eight<Bf16> {
  uint4 v;

  __device__ __forceinline__ void Load(const Bf16* p) { v = LoadPiece(p); }
  __device__ __forceinline__ void Open(float (&x)[kPiece]) const { Unpack(v, x); }
  static __device__ __forceinline__ void Store(Bf16* p, const float (&x)[kPiece]) {
    StorePiece(p, Pack(x));
  }
  static __device__ __forceinline__ float ToFloat(Bf16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ Bf16 FromFloat(float x) { return __float2bfloat16(x); }
};
template <>
struct Eight<float> {
  float v[kPiece];

  __device__ __forceinline__ void Load(const float* p) { LoadFloats(p, v); }
  __device__ __forceinline__ void Open(float (&x)[kPiece]) const {
#pragma unroll
    for (int j = 0; j < kPiece; ++j) x[j] = v[j];
  }
  static __device__ __forceinline__ void Store(float* p, const float (&x)[kPiece]) {
    StoreFloats(p, x);
  }
  static __device__ __forceinline__ float ToFloat(float x) {
    return x;
  }
  static __device__ __forceinline__ float FromFloat(float x) {
    return x;
  }
};

// kAligned: rows begin at 16 bytes, so whole units are loaded at once.
template <typename A, typename B, bool kAligned>
__global__ void __launch_bounds__(kThreads) AddKernel(const AddParams p) {
  const int64_t units = (p.columns + kPiece - 1) / kPiece;
  // One 64-bit division a block, the rest in 32 bits.
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kPerThread);
  const int64_t first_row = first / units, first_unit = first - first_row * units;
  Eight<A> a[kPerThread];
  Eight<B> b[kPerThread];
  int64_t row[kPerThread], column[kPerThread];
  const auto whole = [&](int i) { return kAligned && column[i] + kPiece <= p.columns; };
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const auto at = static_cast<uint32_t>(first_unit) + i * kThreads + threadIdx.x;
    row[i] = first_row + at / static_cast<uint32_t>(units);
    column[i] = int64_t{at % static_cast<uint32_t>(units)} * kPiece;
    if (row[i] >= p.rows || !whole(i)) continue;
    a[i].Load(static_cast<const A*>(p.a) + row[i] * p.a_stride + column[i]);
    b[i].Load(static_cast<const B*>(p.b) + row[i] * p.b_stride + column[i]);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (row[i] >= p.rows) continue;
    A* y = static_cast<A*>(p.y) + row[i] * p.y_stride;
    if (whole(i)) {
      float x[kPiece], z[kPiece];
      a[i].Open(x);
      b[i].Open(z);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) x[j] += z[j];
      Eight<A>::Store(y + column[i], x);
      continue;
    }
    const A* from_a = static_cast<const A*>(p.a) + row[i] * p.a_stride;
    const B* from_b = static_cast<const B*>(p.b) + row[i] * p.b_stride;
    const int64_t end = column[i] + kPiece < p.columns ? column[i] + kPiece : p.columns;
#pragma unroll 1
    for (int64_t j = column[i]; j < end; ++j) {
      y[j] = Eight<A>::FromFloat(Eight<A>::ToFloat(from_a[j]) + Eight<B>::ToFloat(from_b[j]));
    }
  }
}

// Whether rows of T begin at 16 bytes.
template <typename T>
bool Aligned(const void* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 &&
         stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

template <typename A, typename B>
cudaError_t Launch(const AddParams& p, cudaStream_t stream) {
  const int64_t blocks = CeilDiv(p.rows * CeilDiv(p.columns, kPiece), kThreads * kPerThread);
  if (blocks > int64_t{1} << 30) return cudaErrorInvalidValue;
  const auto grid = static_cast<unsigned>(blocks);
  if (Aligned<A>(p.a, p.a_stride) && Aligned<B>(p.b, p.b_stride) && Aligned<A>(p.y, p.y_stride)) {
    AddKernel<A, B, true><<<grid, kThreads, 0, stream>>>(p);
  } else {
    AddKernel<A, B, false><<<grid, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchAdd(const AddParams& p, cudaStream_t stream) {
  if (p.rows < 0 || p.columns < 0 || (p.float_b && !p.float_a) || p.columns > int64_t{1} << 33) {
    return cudaErrorInvalidValue;
  }
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  if (!p.float_a) return Launch<Bf16, Bf16>(p, stream);
  return p.float_b ? Launch<float, float>(p, stream) : Launch<float, Bf16>(p, stream);
}

}  // namespace evenkeel
