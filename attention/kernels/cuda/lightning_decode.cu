// One token of every sequence, bound by memory: 8 D E bytes a head are the reading and writing of
// its state, all else is nothing beside them. A block takes a strip of columns of one head's state
// from the first row to the last, so no sum crosses blocks, and there are as many blocks as strips.
//
// A thread takes four columns (16 bytes) of every 16th row and loads up to eight such rows before
// it uses the first: 16 KB a block of 128 threads are under way at once, and a multiprocessor holds
// several blocks. An output is the sum of the same 16 partial sums in the same order, however wide
// the strips are, so its bits do not depend on the size of the batch.
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/kernels/cuda/lightning_decode_cuda.h"
#include "runtime/ops/cuda/row_pieces.cuh"

namespace evenkeel {
namespace {

using namespace row_pieces;  // NOLINT(google-build-using-namespace)

constexpr int kMaxDim = 256;
constexpr int kGroups = 16;             // of rows: a thread's are group, group + 16, ...
constexpr int kRows = 8;                // of a thread, under way at once
constexpr int kPass = kGroups * kRows;  // rows of a block, likewise

// Columns of a strip: whole lines of the L2 cache, or half of them where whole ones would leave
// multiprocessors without a block.
constexpr int kWide = 32, kNarrow = 16;

// lambda as the sum of two numbers. Rounded to one float32 it is up to 2^-25 off, to the same side
// at every token: a state of a head that hardly decays would be 4e-5 off after 3,000 tokens, 40
// times what the roundings of its sums cost.
struct Decay {
  float factor, rest;

  __device__ __forceinline__ explicit Decay(float slope) : factor(expf(-slope)), rest(0.0f) {
    // From a half on `factor - 1` is exact. Below it the past is gone before its error adds up.
    if (factor >= 0.5f) rest = expm1f(-slope) - (factor - 1.0f);
  }
  // lambda x + y
  __device__ __forceinline__ float operator()(float x, float y) const {
    return fmaf(factor, x, fmaf(rest, x, y));
  }
};

template <int kColumns>
__global__ void __launch_bounds__(kGroups* kColumns / 4)
    LightningDecodeKernel(const __grid_constant__ LightningDecodeParams p, int strips) {
  constexpr int kLanes = kColumns / 4;
  static_assert(kGroups * kLanes >= 64, "a warp opens the key, another one the query");
  __shared__ __align__(16) float key[kMaxDim];
  __shared__ __align__(16) float query[kMaxDim];
  __shared__ __align__(16) float sums[kGroups][kColumns];
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / kLanes, lane = thread % kLanes;
  const int block = static_cast<int>(blockIdx.x);
  const int state = block / strips;  // sequence * H + head
  const int64_t sequence = state / p.num_heads;
  const int head = state % p.num_heads;
  const int strip = block % strips * kColumns;
  const int column = strip + lane * 4;
  const bool inside = column < p.value_dim;
  const int rows = inside ? p.head_dim : 0;
  const int64_t first = int64_t{state} * p.head_dim * p.value_dim + column;
  const float* from = p.initial_state == nullptr ? nullptr : p.initial_state + first;
  float* to = p.final_state == nullptr ? nullptr : p.final_state + first;

  float4 x[kRows];
  const auto load = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = begin + i * kGroups + group;
      x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (from != nullptr && row < rows) {
        x[i] = *reinterpret_cast<const float4*>(from + row * p.value_dim);
      }
    }
  };
  load(0);

  const int piece = thread % 32 * kPiece;
  if (thread < 64 && piece < p.head_dim) {
    const bool is_key = thread < 32;
    const Bf16* row = is_key ? static_cast<const Bf16*>(p.k) + sequence * p.k_stride
                             : static_cast<const Bf16*>(p.q) + sequence * p.q_stride;
    float values[kPiece];
    Unpack(LoadPiece(row + head * p.head_dim + piece), values);
    StoreFloats((is_key ? key : query) + piece, values);
  }
  float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (inside) {
    const Bf16* row = static_cast<const Bf16*>(p.v) + sequence * p.v_stride;
    const uint2 pairs = *reinterpret_cast<const uint2*>(row + head * p.value_dim + column);
    UnpackPair(pairs.x, value.x, value.y);
    UnpackPair(pairs.y, value.z, value.w);
  }
  const Decay decay(p.slopes[head]);
  __syncthreads();

  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const auto update = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = begin + i * kGroups + group;
      if (row < rows) {
        const float k = key[row], q = query[row];
        x[i].x = decay(x[i].x, k * value.x);
        x[i].y = decay(x[i].y, k * value.y);
        x[i].z = decay(x[i].z, k * value.z);
        x[i].w = decay(x[i].w, k * value.w);
        sum.x = fmaf(q, x[i].x, sum.x);
        sum.y = fmaf(q, x[i].y, sum.y);
        sum.z = fmaf(q, x[i].z, sum.z);
        sum.w = fmaf(q, x[i].w, sum.w);
        if (to != nullptr) *reinterpret_cast<float4*>(to + row * p.value_dim) = x[i];
      }
    }
  };
  update(0);
  for (int begin = kPass; begin < rows; begin += kPass) {
    load(begin);
    update(begin);
  }

  *reinterpret_cast<float4*>(&sums[group][lane * 4]) = sum;
  __syncthreads();
  if (thread < kColumns && strip + thread < p.value_dim) {
    float part[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) part[g] = sums[g][thread];
#pragma unroll
    for (int level = 1; level < kGroups; level *= 2) {
#pragma unroll
      for (int g = 0; g < kGroups; g += 2 * level) part[g] += part[g + level];
    }
    Bf16* row = static_cast<Bf16*>(p.out) + sequence * p.out_stride;
    row[head * p.value_dim + strip + thread] = __float2bfloat16(part[0]);
  }
}

bool IsValid(const LightningDecodeParams& p) {
  return std::min(p.head_dim, p.value_dim) >= 8 && std::max(p.head_dim, p.value_dim) <= kMaxDim &&
         p.head_dim % 8 == 0 && p.value_dim % 8 == 0 && p.num_heads > 0 && p.num_sequences >= 0 &&
         p.q_stride % 8 == 0 && p.k_stride % 8 == 0 && p.v_stride % 8 == 0 && p.out_stride % 8 == 0;
}

int64_t NumBlocks(const LightningDecodeParams& p, int columns) {
  return p.num_sequences * p.num_heads * CeilDiv(p.value_dim, columns);
}

template <int kColumns>
cudaError_t Launch(const LightningDecodeParams& p, cudaStream_t stream) {
  const int64_t blocks = NumBlocks(p, kColumns);
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  LightningDecodeKernel<kColumns>
      <<<static_cast<unsigned>(blocks), kGroups * kColumns / 4, 0, stream>>>(
          p, static_cast<int>(CeilDiv(p.value_dim, kColumns)));
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchLightningDecode(const LightningDecodeParams& p, cudaStream_t stream) {
  if (!IsValid(p)) return cudaErrorInvalidValue;
  if (p.num_sequences == 0) return cudaSuccess;
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  return NumBlocks(p, kWide) < multiprocessors ? Launch<kNarrow>(p, stream)
                                               : Launch<kWide>(p, stream);
}

}  // namespace evenkeel
