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

__device__ __forceinline__ void AddPair(uint32_t pair, float& low, float& high) {
  low += __uint_as_float(pair << 16);
  high += __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

template <int kParts>
__global__ void __launch_bounds__(kThreads) SumBf16Kernel(const SumPartsParams p) {
  const int64_t pieces = p.count / 8;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pieces;
       i += int64_t{gridDim.x} * kThreads) {
    uint4 loaded[kParts];
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      if (r < p.num_parts) loaded[r] = static_cast<const uint4*>(p.parts[r])[i];
    }
    float sum[8] = {};
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      if (r >= p.num_parts) break;
      AddPair(loaded[r].x, sum[0], sum[1]);
      AddPair(loaded[r].y, sum[2], sum[3]);
      AddPair(loaded[r].z, sum[4], sum[5]);
      AddPair(loaded[r].w, sum[6], sum[7]);
    }
    static_cast<uint4*>(p.out)[i] = make_uint4(PackPair(sum[0], sum[1]), PackPair(sum[2], sum[3]),
                                               PackPair(sum[4], sum[5]), PackPair(sum[6], sum[7]));
  }
}

template <int kParts>
__global__ void __launch_bounds__(kThreads) SumFloatKernel(const SumPartsParams p) {
  const int64_t pieces = p.count / 4;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pieces;
       i += int64_t{gridDim.x} * kThreads) {
    float4 loaded[kParts];
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      if (r < p.num_parts) loaded[r] = static_cast<const float4*>(p.parts[r])[i];
    }
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int r = 0; r < kParts; ++r) {
      if (r >= p.num_parts) break;
      sum.x += loaded[r].x;
      sum.y += loaded[r].y;
      sum.z += loaded[r].z;
      sum.w += loaded[r].w;
    }
    static_cast<float4*>(p.out)[i] = sum;
  }
}

template <int kParts>
void Launch(const SumPartsParams& p, cudaStream_t stream) {
  const int64_t pieces = p.count / (p.is_bf16 ? 8 : 4);
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((pieces + kThreads - 1) / kThreads, kMaxBlocks));
  if (p.is_bf16) {
    SumBf16Kernel<kParts><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    SumFloatKernel<kParts><<<blocks, kThreads, 0, stream>>>(p);
  }
}

}  // namespace

cudaError_t LaunchSumParts(const SumPartsParams& p, cudaStream_t stream) {
  if (p.num_parts < 1 || p.num_parts > kMaxParts || p.count < 0 ||
      p.count % (p.is_bf16 ? 8 : 4) != 0) {
    return cudaErrorInvalidValue;
  }
  if (p.count == 0) return cudaSuccess;
  if (p.num_parts <= 2) {
    Launch<2>(p, stream);
  } else if (p.num_parts <= 4) {
    Launch<4>(p, stream);
  } else if (p.num_parts <= 8) {
    Launch<8>(p, stream);
  } else {
    Launch<kMaxParts>(p, stream);
  }
  return cudaGetLastError();
}

}  // namespace evenkeel
