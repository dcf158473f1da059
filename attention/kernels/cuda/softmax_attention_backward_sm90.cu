// Backward pass on Hopper, with the formulas, the order and the turns of
// softmax_attention_backward.cu. As many blocks as multiprocessors take key tiles, one after the
// other, in the order of the plan. What the warpgroups that multiply do is in
// softmax_backward_by_keys_sm90.cuh and, at head size 256, softmax_backward_by_gradient_sm90.cuh.
// The warps of one more warpgroup move data: the first feeds Q, dO, lse and delta by bulk copies,
// as far ahead as there are stages, and the next tile's keys while the last queries of this one are
// worked on; the next two add dQ to memory, by bulk reductions, each sum in its turn
// (softmax_backward_adders_sm90.cuh). (Additions by the threads that multiply cost a sixth of the
// time: they wait while their stores are accepted.)
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_sm90.h"
#include "attention/kernels/cuda/softmax_backward_adders_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_block_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_by_gradient_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_by_keys_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_products_sm90.cuh"
#include "attention/kernels/cuda/softmax_backward_workspace.h"
#include "attention/kernels/cuda/tensor_map.h"

namespace evenkeel {
namespace {

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    SoftmaxBackwardSm90Kernel(const __grid_constant__ SoftmaxBackwardParams params,
                              const __grid_constant__ SoftmaxBackwardWorkspace w,
                              const __grid_constant__ BackwardTensorMaps maps) {
#if defined(EK_HAS_SM90A)
  extern __shared__ uint8_t shared[];
  __shared__ BackwardBarriers b;
  __shared__ BackwardStep steps[Shape::kQueryStages];
  __shared__ BackwardKeys notes[kKeyNotes];
  __shared__ Contribution contributions[4];
  static_assert(
      Shape::kSharedBytes + sizeof(b) + sizeof(steps) + sizeof(notes) + sizeof(contributions) <=
          kMostSharedBytes,
      "a block would not start");
  BackwardTiles tiles;
  tiles.k = (SharedAddress(shared) + 1023) / 1024 * 1024;
  tiles.v = tiles.k + Shape::kKeyStages * Shape::kKeyBytes;
  tiles.q = tiles.v + Shape::kKeyBytes;
  tiles.dout = tiles.q + Shape::kQueryStages * Shape::kQueryBytes;
  tiles.ds = tiles.dout + Shape::kDoutStages * Shape::kQueryBytes;
  tiles.exchange = tiles.ds + Shape::kScoreStages * Shape::kScoreBytes;
  tiles.lse = tiles.exchange + Shape::kExchangeBytes;
  tiles.delta = tiles.lse + Shape::kQueryStages * Shape::kRowBytes;
  tiles.dq = tiles.delta + Shape::kDoutStages * Shape::kRowBytes;
  if (threadIdx.x == 0) {
    // Arrivals of threads. By gradient one warpgroup of two makes dP; else two own keys and a third
    // makes dQ.
    constexpr int kUseKeys = Shape::kByGradient ? 256 : 384,
                  kUseValues = Shape::kByGradient ? 128 : 256;
    InitBarrier(SharedAddress(&b.v_full), 1);
    InitBarrier(SharedAddress(&b.v_empty), kUseValues);
    for (int i = 0; i < Shape::kQueryStages; ++i) {
      InitBarrier(SharedAddress(&b.q_full[i]), 1);
      InitBarrier(SharedAddress(&b.q_empty[i]), kUseKeys);
    }
    for (int i = 0; i < 2; ++i) {
      InitBarrier(SharedAddress(&b.k_full[i]), 1);
      InitBarrier(SharedAddress(&b.ds_full[i]), 256);
      InitBarrier(SharedAddress(&b.ds_empty[i]), 128);
      InitBarrier(SharedAddress(&b.do_full[i]), 1);
      InitBarrier(SharedAddress(&b.k_empty[i]), kUseKeys);
      InitBarrier(SharedAddress(&b.do_empty[i]), 256);
    }
    for (int i = 0; i < 4; ++i) {
      InitBarrier(SharedAddress(&b.dq_named[i]), 1);
      InitBarrier(SharedAddress(&b.dq_full[i]), 128);
    }
    for (int i = 0; i < 3; ++i) InitBarrier(SharedAddress(&b.dq_empty[i]), 1);
    FenceSharedForAsync();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    LowerRegisters<Shape::kByGradient ? 24 : 32>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 0) {
      ProduceBackward<Shape>(params, w, maps, b, tiles, steps, notes, lane);
    } else if (lane == 0 && warp < 3) {
      if constexpr (!Shape::kByGradient) {
        AddEverySecond<Shape>(w, b, tiles, contributions, warp - 1);
      } else if (warp == 1) {
        AddHalf<Shape, 0>(w, b, tiles, contributions);
      } else {
        AddHalf<Shape, 1>(w, b, tiles, contributions);
      }
    }
  } else if constexpr (!Shape::kByGradient) {  // 512 threads begin with 128 registers
    if (threadIdx.x < 384) {
      RaiseRegisters<208>();
      ConsumeForOwnKeys<Shape>(params, b, tiles, steps, notes, threadIdx.x / 128 - 1);
    } else {
      LowerRegisters<64>();
      ConsumeForQueries<Shape>(b, tiles, steps, contributions);
    }
  } else {
    RaiseRegisters<240>();  // what the other warps gave back: 384 threads begin with 168
    if (threadIdx.x < 256) {
      ConsumeForValues<Shape>(params, b, tiles, steps, notes, contributions);
    } else {
      ConsumeForKeys<Shape>(params, b, tiles, steps, notes, contributions);
    }
  }
#endif
}

// Rounds the summed dQ, from the order of the accumulators of dQ^T to rows. One block per query
// tile and head.
template <typename Shape>
__global__ void __launch_bounds__(256)
    RoundDqSm90Kernel(const __grid_constant__ SoftmaxBackwardParams params, const float* dq) {
  constexpr int kPitch = Shape::kHeadDim + 8;  // elements; keeps rows 16 bytes aligned
  __shared__ __align__(16) Bf16 rows[Shape::kQueries * kPitch];
  const SoftmaxForwardParams& p = params.forward;
  const int head = blockIdx.x % p.num_heads;
  const QueryTile tile = p.plan.query_tiles[blockIdx.x / p.num_heads];
  const float* source = dq + int64_t{blockIdx.x} * Shape::kTileFloats;
  const bool empty = tile.num_keys <= 0;  // no block has written this tile
  const int consumer = threadIdx.x / 128, thread = threadIdx.x % 128;
  const int warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int i = 0; i < Shape::kPieces; ++i) {
    const int piece = consumer * Shape::kPieces + i;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (!empty) {
        x = *reinterpret_cast<const float4*>(source + piece * Shape::kPieceFloats + n * 512 +
                                             thread * 4);
      }
      const int d = (Shape::kHeadDim == 64 ? 0 : piece * 64) + warp * 16 + lane / 4;
      const int query = (Shape::kHeadDim == 64 ? piece * 64 : 0) + n * 8 + (lane % 4) * 2;
      rows[query * kPitch + d] = __float2bfloat16(x.x * p.scale);
      rows[(query + 1) * kPitch + d] = __float2bfloat16(x.y * p.scale);
      rows[query * kPitch + d + 8] = __float2bfloat16(x.z * p.scale);
      rows[(query + 1) * kPitch + d + 8] = __float2bfloat16(x.w * p.scale);
    }
  }
  __syncthreads();
  constexpr int kChunks = Shape::kHeadDim / 8;
  Bf16* target =
      static_cast<Bf16*>(params.dq) + int64_t{tile.q_begin} * params.dq_stride + head * p.head_dim;
  for (int i = threadIdx.x; i < tile.q_rows * kChunks; i += 256) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (chunk * 8 < p.head_dim) {
      *reinterpret_cast<uint4*>(target + row * params.dq_stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(&rows[row * kPitch + chunk * 8]);
    }
  }
}

template <int kDim>
cudaError_t Launch(const SoftmaxBackwardParams& params, cudaStream_t stream) {
  using Shape = Sm90BackwardShape<kDim>;
  const SoftmaxForwardParams& p = params.forward;
  if (p.plan.tiling.backward_queries != Shape::kQueries ||
      p.plan.tiling.backward_keys != Shape::kKeys) {
    return cudaErrorInvalidValue;
  }
  size_t bytes = 0;
  const SoftmaxBackwardWorkspace w = LayOutSoftmaxBackward(
      params.workspace, p.plan.num_query_tiles, Shape::kQueries, p.num_heads, kDim, &bytes);
  cudaError_t error = LaunchSoftmaxBackwardStatistics(params, w, stream);
  if (error != cudaSuccess) return error;
  if (p.plan.num_key_tiles > 0) {
    BackwardTensorMaps maps;
    error = EncodeTensorMap(&maps.q, p.q, p.q_rows, p.num_heads, p.head_dim, p.q_stride,
                            Shape::kQueries);
    if (error == cudaSuccess) {
      error = EncodeTensorMap(&maps.dout, params.dout, p.q_rows, p.num_heads, p.value_dim,
                              params.dout_stride, Shape::kQueries);
    }
    if (error == cudaSuccess) {
      error = EncodeTensorMap(&maps.k, p.k, p.kv_rows, p.num_kv_heads, p.head_dim, p.k_stride,
                              Shape::kKeys);
    }
    if (error == cudaSuccess) {
      error = EncodeTensorMap(&maps.v, p.v, p.kv_rows, p.num_kv_heads, p.value_dim, p.v_stride,
                              Shape::kKeys);
    }
    const auto kernel = SoftmaxBackwardSm90Kernel<Shape>;
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes);
    }
    if (error != cudaSuccess) return error;
    int device = 0, multiprocessors = 0;
    error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(
        std::min<int64_t>(multiprocessors, p.plan.num_key_tiles * p.num_kv_heads));
    kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params, w, maps);
  }
  const auto query_blocks = static_cast<unsigned>(p.plan.num_query_tiles * p.num_heads);
  RoundDqSm90Kernel<Shape><<<query_blocks, 256, 0, stream>>>(params, w.dq);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSoftmaxBackwardSm90(const SoftmaxBackwardParams& params, cudaStream_t stream) {
  const int dim = std::max(params.forward.head_dim, params.forward.value_dim);
  if (dim <= 64) return Launch<64>(params, stream);
  if (dim <= 128) return Launch<128>(params, stream);
  return Launch<256>(params, stream);
}

}  // namespace evenkeel
