// A thread takes 16 bytes of every part, all loaded before any is added. Few blocks: the kernel
// runs beside matrix products, whose multiprocessors it should leave alone; its bytes are those of
// one gather, and its reads come out of the L2 cache, where the copies have just put them.
#include <cuda_bf16.h>

#include <algorithm>

#include "runtime/comm/cuda/sum_parts.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;

// 16 bytes of a part as numbers.
template <bool kIsBf16>
struct Piece;

template <>
struct Piece<true> {
  static constexpr int kNumbers = 8;
  static __device__ __forceinline__ void Add(const uint32_t (&piece)[4], float (&sum)[kNumbers]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += __uint_as_float(piece[i] << 16);
      sum[2 * i + 1] += __uint_as_float(piece[i] & 0xffff0000u);
    }
  }
  static __device__ __forceinline__ uint32_t Word(const float (&sum)[kNumbers], int i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

template <>
struct Piece<false> {
  static constexpr int kNumbers = 4;
  static __device__ __forceinline__ void Add(const uint32_t (&piece)[4], float (&sum)[kNumbers]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += __uint_as_float(piece[i]);
  }
  static __device__ __forceinline__ uint32_t Word(const float (&sum)[kNumbers], int i) {
    return __float_as_uint(sum[i]);
  }
};

template <int kParts, bool kIsBf16>
__global__ void __launch_bounds__(kThreads) SumPartsKernel(const SumPartsParams p) {
  using Numbers = Piece<kIsBf16>;
  const int64_t pieces = p.count / Numbers::kNumbers;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pieces;
       i += int64_t{gridDim.x} * kThreads) {
    uint4 loaded[kParts];
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      if (r < p.num_parts) loaded[r] = static_cast<const uint4*>(p.parts[r])[i];
    }
    float sum[Numbers::kNumbers] = {};
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      if (r >= p.num_parts) break;
      Numbers::Add({loaded[r].x, loaded[r].y, loaded[r].z, loaded[r].w}, sum);
    }
    static_cast<uint4*>(p.out)[i] = make_uint4(Numbers::Word(sum, 0), Numbers::Word(sum, 1),
                                               Numbers::Word(sum, 2), Numbers::Word(sum, 3));
  }
}

template <int kParts, bool kIsBf16>
void Launch(const SumPartsParams& p, cudaStream_t stream) {
  const int64_t pieces = p.count / Piece<kIsBf16>::kNumbers;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((pieces + kThreads - 1) / kThreads, kMaxBlocks));
  SumPartsKernel<kParts, kIsBf16><<<blocks, kThreads, 0, stream>>>(p);
}

template <bool kIsBf16>
cudaError_t LaunchFor(const SumPartsParams& p, cudaStream_t stream) {
  if (p.num_parts < 1 || p.num_parts > kMaxParts || p.count < 0 ||
      p.count % Piece<kIsBf16>::kNumbers != 0) {
    return cudaErrorInvalidValue;
  }
  if (p.count == 0) return cudaSuccess;
  if (p.num_parts <= 2) {
    Launch<2, kIsBf16>(p, stream);
  } else if (p.num_parts <= 4) {
    Launch<4, kIsBf16>(p, stream);
  } else if (p.num_parts <= 8) {
    Launch<8, kIsBf16>(p, stream);
  } else {
    Launch<kMaxParts, kIsBf16>(p, stream);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSumParts(const SumPartsParams& p, cudaStream_t stream) {
  return p.is_bf16 ? LaunchFor<true>(p, stream) : LaunchFor<false>(p, stream);
}

}  // namespace evenkeel
