// A thread takes one place of the half head, 8 wide, with its cosines and sines, and rotates it in
// several heads of its token. The table's angles cost tens of float64 operations each, once a step
// for all layers.
#include <algorithm>

#include "runtime/ops/cuda/position_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kThreads = 256;
constexpr int kHeads = 4;  // of a thread, in flight together

// blockDim: (pieces of a half head, groups of heads, tokens).
__global__ void __launch_bounds__(kThreads) RopeKernel(const RopeParams p, int groups) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.z + threadIdx.z;
  if (t >= p.tokens) return;
  const int half = static_cast<int>(p.head_dim / 2), column = threadIdx.x * kPiece;
  float c[kPiece], s[kPiece];
  LoadFloats(p.cos + t * half + column, c);
  LoadFloats(p.sin + t * half + column, s);
#pragma unroll
  for (int j = 0; j < kPiece; ++j) s[j] = p.inverse ? -s[j] : s[j];
  Bf16* row = static_cast<Bf16*>(p.x) + t * p.stride + column;
  const int heads = static_cast<int>(p.heads);
  for (int group = threadIdx.y; group < groups; group += blockDim.y) {
    uint4 low[kHeads], high[kHeads];
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      const int h = group + i * groups;
      if (h >= heads) break;
      low[i] = LoadPiece(row + h * 2 * half);
      high[i] = LoadPiece(row + h * 2 * half + half);
    }
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      const int h = group + i * groups;
      if (h >= heads) break;
      float a[kPiece], b[kPiece];
      Unpack(low[i], a);
      Unpack(high[i], b);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        const float turned = a[j] * c[j] - b[j] * s[j];
        b[j] = b[j] * c[j] + a[j] * s[j];
        a[j] = turned;
      }
      StorePiece(row + h * 2 * half, Pack(a));
      StorePiece(row + h * 2 * half + half, Pack(b));
    }
  }
}

__global__ void __launch_bounds__(kThreads) RopeAnyKernel(const RopeParams p) {
  const int64_t half = p.head_dim / 2;
  for (int64_t t = blockIdx.x; t < p.tokens; t += gridDim.x) {
    for (int64_t i = threadIdx.x; i < p.heads * half; i += kThreads) {
      const int64_t h = i / half, j = i % half;
      Bf16* low = static_cast<Bf16*>(p.x) + t * p.stride + h * p.head_dim + j;
      Bf16* high = low + half;
      const float c = p.cos[t * half + j],
                  s = p.inverse ? -p.sin[t * half + j] : p.sin[t * half + j];
      const float a = __bfloat162float(*low), b = __bfloat162float(*high);
      *low = __float2bfloat16(a * c - b * s);
      *high = __float2bfloat16(b * c + a * s);
    }
  }
}

__global__ void __launch_bounds__(kThreads) RopeTableKernel(const RopeTableParams p) {
  const int64_t half = p.head_dim / 2, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.tokens * half;
       i += step) {
    const double angle =
        static_cast<double>(p.positions[i / half]) * p.inverse_frequencies[i % half];
    double s, c;
    sincos(angle, &s, &c);
    p.cos[i] = static_cast<float>(p.attention_factor * c);
    p.sin[i] = static_cast<float>(p.attention_factor * s);
  }
}

}  // namespace

cudaError_t LaunchRopeTable(const RopeTableParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.head_dim < 0 || p.head_dim % 2 != 0) return cudaErrorInvalidValue;
  const int64_t angles = p.tokens * (p.head_dim / 2);
  if (angles == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(CeilDiv(angles, kThreads), 1 << 30));
  RopeTableKernel<<<blocks, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t LaunchRope(const RopeParams& p, cudaStream_t stream) {
  if (p.tokens < 0 || p.heads < 0 || p.head_dim < 0 || p.head_dim % 2 != 0) {
    return cudaErrorInvalidValue;
  }
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return cudaSuccess;
  const int64_t pieces = p.head_dim / (2 * kPiece);
  if (HasPieces(p.x, p.stride, p.head_dim / 2) && HasPieces(p.cos, 0, p.head_dim / 2) &&
      HasPieces(p.sin, 0, p.head_dim / 2) && pieces <= kThreads && p.heads * p.head_dim < 1 << 30) {
    const int64_t groups = CeilDiv(p.heads, kHeads);
    const int64_t y = std::min(groups, kThreads / pieces);
    const int64_t z = std::min<int64_t>(kThreads / (pieces * y), 64);
    const dim3 block(static_cast<unsigned>(pieces), static_cast<unsigned>(y),
                     static_cast<unsigned>(z));
    RopeKernel<<<static_cast<unsigned>(CeilDiv(p.tokens, z)), block, 0, stream>>>(
        p, static_cast<int>(groups));
  } else {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(p.tokens, 1 << 30));
    RopeAnyKernel<<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace evenkeel
