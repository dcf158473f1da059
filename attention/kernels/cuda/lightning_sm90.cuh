// What the two kernels of lightning attention for Hopper share (lightning_states_sm90.cu,
// lightning_outputs_sm90.cu): the recurrences of lightning_segments.cu for heads of 128, on chunks
// of 128 rows. In a block one warp feeds tiles to shared memory by bulk tensor copies while two
// warpgroups compute, each 64 rows of the chunk and of the state, which stays in registers as
// accumulators.
//
// Tiles lie in the order of the tokens also where the recurrence runs from the last token to the
// first; then row i sees the columns j >= i. With m rows in a chunk:
//              M_ij, i and j apart by n   state before, at row i   row j in the state after
//   in order   lambda^n, j <= i           lambda^(i + 1)           lambda^(m - 1 - j)
//   reversed   lambda^n, j >= i           lambda^(m - 1 - i)       lambda^(j + 1)
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/lightning_segments.h"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/tensor_map.h"
#include "attention/kernels/cuda/tile_product.cuh"
#include "attention/kernels/cuda/warpgroup_products.cuh"

namespace evenkeel::lightning_sm90 {

constexpr int kDim = kLightningSm90Dim;
constexpr int kRows = kLightningChunk;
// Rows enter a state by halves of a chunk, so that few steps of decay are rounded with a key.
constexpr int kHalf = kRows / 2;
constexpr int kTileBytes = kRows * kDim * 2;
constexpr int kThreads = 384;
constexpr int kConsumerThreads = 256;
constexpr int kConsumerWarps = kConsumerThreads / 32;

struct PassMaps {
  CUtensorMap q, k, v;  // boxes of 64 columns, one head, a chunk's rows
};

struct Maps {
  PassMaps passes[3];
};

#if defined(EK_HAS_SM90A)

__device__ __forceinline__ void StartTile(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                          int head, int row) {
  CopyBox(shared, map, barrier, 0, head, row);
  CopyBox(shared + kRows * 128, map, barrier, 64, head, row);
}

// What a thread is of the two warpgroups that compute.
struct Place {
  int first_row;  // of the 16 rows of the warp, in a chunk and in the state
  int lane;
  uint32_t rows_first, cols_first;  // LaneOffset
};

__device__ __forceinline__ Place PlaceOf(int consumer) {
  const int lane = threadIdx.x % 32;
  return {consumer * 64 + static_cast<int>(threadIdx.x % 128 / 32) * 16, lane,
          LaneOffset(lane, true), LaneOffset(lane, false)};
}

__device__ __forceinline__ void Release(uint64_t& barrier, int lane) {
  __syncwarp();
  if (lane == 0) Arrive(SharedAddress(&barrier));
}

// Half a chunk, as it enters a state.
struct Half {
  int first;  // row of a tile
  int rows;   // that exist

  __device__ __forceinline__ Half(int half, int chunk_rows)
      : first(half * kHalf), rows(min(max(chunk_rows - half * kHalf, 0), kHalf)) {}
};

// The warp's 16 columns of half a chunk's keys, transposed, as operand a; each row is weighed by
// the decay until the last row of the recurrence has entered.
template <bool kReversed>
__device__ __forceinline__ void LoadWeightedKeys(uint32_t (&a)[kHalf / 16][4], uint32_t k_tile,
                                                 const Place& place, const Half& half,
                                                 float log_decay) {
  const TilePart part = PartAt<kRows>(k_tile, place.cols_first, half.first, place.first_row);
  // This lane's rows of 16: 2 (lane % 4) and the next, and the two 8 further.
  const int row = place.lane % 4 * 2;
  const float step = kReversed ? log_decay : -log_decay;
  const float first = log_decay * static_cast<float>(kReversed ? row + 1 : half.rows - 1 - row);
#pragma unroll
  for (int k = 0; k < kHalf / 16; ++k) {
    LoadMatricesTransposed(a[k], BlockAddress<kRows>(part.base, part.lane, k * 16, 0));
    float weight[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Rows that do not exist are zero; their weight is kept from growing without bound.
      const float further = static_cast<float>(k * 16 + (i & 1) + (i >> 1) * 8);
      weight[i] = Exp2(fminf(step * further + first, 0.0f));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = __uint_as_float(a[k][i] << 16) * weight[(i >> 1) * 2];
      const float high = __uint_as_float(a[k][i] & 0xffff0000u) * weight[(i >> 1) * 2 + 1];
      a[k][i] = PackBf16(low, high);
    }
  }
}

// state += K^T V of half a chunk, K weighed; asynchronous.
__device__ __forceinline__ void StartStateUpdate(float (&state)[kDim / 2],
                                                 const uint32_t (&keys)[kHalf / 16][4],
                                                 uint32_t v_tile, const Half& half) {
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kHalf / 16; ++k) {
    WgmmaRowMajorB(state, keys[k],
                   OperandDescriptor(v_tile + (half.first + k * 16) * 128, kRows * 128));
  }
  WgmmaCommit();
}

// Writes the thread's part of a state, [kDim, kDim] dense.
__device__ __forceinline__ void StoreState(float* target, const float (&state)[kDim / 2],
                                           const Place& place) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* row = target + (place.first_row + half * 8 + place.lane / 4) * kDim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(row + n * 8 + (place.lane % 4) * 2) =
          make_float2(state[n * 4 + half * 2], state[n * 4 + half * 2 + 1]);
    }
  }
}

// Named barrier of both warpgroups; 0 is that of the whole block.
constexpr int kConsumersBarrier = 1;

// Rows past the end of a segment belong to others, or to nobody: 0 times NaN would be NaN.
__device__ __forceinline__ void ZeroRowsPast(int rows, uint32_t k_tile, uint32_t v_tile) {
  const int thread = static_cast<int>(threadIdx.x) - 128;
  ZeroRows<kRows, kDim, kConsumerThreads>(k_tile, rows, thread);
  ZeroRows<kRows, kDim, kConsumerThreads>(v_tile, rows, thread);
}

// What a block computes.
struct Work {
  const Recurrence* pass;
  LightningSegment segment;
  int index;  // of the segment
  int head;
  float log_decay;

  __device__ __forceinline__ int chunks() const { return (segment.rows + kRows - 1) / kRows; }
  // The chunk visited at place i of the recurrence.
  __device__ __forceinline__ int chunk(int i) const {
    return pass->reversed ? chunks() - 1 - i : i;
  }
};

#endif  // EK_HAS_SM90A

template <typename... Arguments>
inline cudaError_t Launch(void (*kernel)(Arguments...), int64_t blocks, int shared_bytes,
                          bool early, cudaStream_t stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  return LaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, shared_bytes,
                      {.early = early}, stream, arguments...);
}

inline cudaError_t Encode(CUtensorMap* map, const Bf16* data, int64_t stride,
                          const LightningProblem& problem) {
  return EncodeTensorMap(map, data, problem.plan.num_tokens, problem.num_heads, kDim, stride,
                         kRows);
}

inline cudaError_t EncodeKeysAndValues(PassMaps* maps, const Recurrence& pass,
                                       const LightningProblem& problem) {
  const cudaError_t error = Encode(&maps->k, pass.k, pass.k_stride, problem);
  if (error != cudaSuccess) return error;
  return Encode(&maps->v, pass.v, pass.v_stride, problem);
}

}  // namespace evenkeel::lightning_sm90
