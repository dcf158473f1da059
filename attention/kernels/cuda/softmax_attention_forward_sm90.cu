// Forward pass on Hopper (after Shah et al., FlashAttention-3, 2024). As many blocks as
// multiprocessors draw the query tiles in the order of the plan. In a block one warp feeds tiles to
// shared memory by bulk tensor copies while two warpgroups compute, each 64 of the 128 queries:
//   * within a warpgroup, the scores of the next key block are computed while the output of the
//     current one is, and the exponentials of the next run under the tail of the latter;
//   * between the two, named barriers let one multiply while the other takes exponentials.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/softmax_attention_sm90.h"
#include "attention/kernels/cuda/softmax_forward_block_sm90.cuh"
#include "attention/kernels/cuda/softmax_forward_rows_sm90.cuh"
#include "attention/kernels/cuda/tensor_map.h"
#include "attention/kernels/cuda/warpgroup_products.cuh"

namespace evenkeel {
namespace {

#if defined(EK_HAS_SM90A)

constexpr int kTurnBarrier = 1;  // and the next, one for each consumer
constexpr int kConsumersBarrier = 3;

template <typename Shape>
__device__ __forceinline__ void Consume(const SoftmaxForwardParams& p, ForwardBarriers& b,
                                        const ForwardTiles& tiles, const ForwardWork& work,
                                        int consumer) {
  constexpr int kDim = Shape::kHeadDim, kKeys = Shape::kKeys;
  // Measured (docs/kernels.md): at 64 looking whether outputs must be multiplied costs more than it
  // saves, and so does code of its own for blocks that need no mask, which at 128 is worth 5 %; at
  // 256 the exponentials are in the way of the products.
  constexpr bool kMaskedApart = kDim > 64;
  constexpr int kSlack = kDim <= 64 ? 0 : 8, kByProducts = kDim <= 128 ? 0 : 1;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int first_row = consumer * 64 + warp * 16 + lane / 4;
  const uint32_t q_rows = tiles.q + consumer * 64 * 128;
  const float scale = p.scale * kLog2E;
  const auto release = [&](uint64_t& barrier) {
    __syncwarp();
    if (lane == 0) Arrive(SharedAddress(&barrier));
  };
  // Of keys or values, in all blocks that they are copied to.
  const auto release_keys = [&](uint64_t& barrier) {
    release(barrier);
    if (Shape::kCluster > 1 && lane == 0) {
      ArriveAtPeer(AddressInPeer(SharedAddress(&barrier), ClusterRank() ^ 1));
    }
  };
  const auto wait_turn = [&] { NamedBarrierSync(kTurnBarrier + consumer, 256); };
  const auto pass_turn = [&] { NamedBarrierArrive(kTurnBarrier + 1 - consumer, 256); };
  if (consumer == 1) pass_turn();  // the first consumer begins

  RingPlace place;
  uint32_t q_parity = 0;
  while (true) {
    WaitBarrier(SharedAddress(&b.q_full), q_parity);
    q_parity ^= 1;
    const ForwardWork tile = work;
    if (tile.head < 0) break;
    const int num_keys = tile.num_keys;
    float o[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;
    RowState rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};

    if (num_keys > 0) {
      int block = (num_keys - 1) / kKeys;
      const int visible = tile.visible + first_row;
      // Blocks from here on hold keys that some row of the warpgroup does not see.
      const int masked_from = max(tile.visible + consumer * 64, 0) / kKeys;
      float s[kKeys / 2], shrink[2];
      uint32_t probabilities[kKeys / 16][4];

      WaitBarrier(SharedAddress(&b.k_full[place.stage]), place.parity);
      wait_turn();
      StartRowProducts<kDim, Shape::kQueries, kKeys>(s, q_rows,
                                                     tiles.k + place.stage * Shape::kTileBytes);
      pass_turn();
      WgmmaWait<0>();
      release_keys(b.k_empty[place.stage]);
      if (block >= masked_from) Mask<kKeys, 8>(s, visible - block * kKeys, lane);
      // The last key ends the block for rows whose diagonal is past it.
      const int valid = num_keys - block * kKeys;
      if (valid < kKeys) Mask<kKeys, 0>(s, valid, lane);
      TakeExponentials<kKeys, kSlack, 0>(s, rows, scale, shrink);
      RoundToOperand<kKeys>(probabilities, s);

      // Rows past the last key hold whatever lies there: 0 times NaN would be NaN.
      if (valid < kKeys) {
        const uint32_t v_tile = tiles.v + place.stage * Shape::kTileBytes;
        WaitBarrier(SharedAddress(&b.v_full[place.stage]), place.parity);
        ZeroRows<kKeys, kDim, 256>(v_tile, valid, threadIdx.x - 128);
        FenceSharedForAsync();
        NamedBarrierSync(kConsumersBarrier, 256);
      }

      while (--block >= 0) {
        const RingPlace now = place;
        place.Advance();
        WaitBarrier(SharedAddress(&b.k_full[place.stage]), place.parity);
        wait_turn();
        StartRowProducts<kDim, Shape::kQueries, kKeys>(s, q_rows,
                                                       tiles.k + place.stage * Shape::kTileBytes);
        WaitBarrier(SharedAddress(&b.v_full[now.stage]), now.parity);
        StartProduct<kKeys, kDim>(o, probabilities, tiles.v + now.stage * Shape::kTileBytes);
        pass_turn();
        WgmmaWait<1>();
        release_keys(b.k_empty[place.stage]);
        if constexpr (kMaskedApart) {
          if (block >= masked_from) {
            Mask<kKeys, 8>(s, visible - block * kKeys, lane);
            TakeExponentials<kKeys, kSlack, 0>(s, rows, scale, shrink);
          } else {
            TakeExponentials<kKeys, kSlack, kByProducts>(s, rows, scale, shrink);
          }
        } else {
          if (block >= masked_from) Mask<kKeys, 8>(s, visible - block * kKeys, lane);
          TakeExponentials<kKeys, kSlack, 0>(s, rows, scale, shrink);
        }
        WgmmaWait<0>();
        release_keys(b.v_empty[now.stage]);
        if (kSlack == 0 || __any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
          for (int i = 0; i < kDim / 2; ++i) o[i] *= shrink[(i >> 1) & 1];
        }
        RoundToOperand<kKeys>(probabilities, s);
      }
      release(b.q_empty);
      WaitBarrier(SharedAddress(&b.v_full[place.stage]), place.parity);
      StartProduct<kKeys, kDim>(o, probabilities, tiles.v + place.stage * Shape::kTileBytes);
      WgmmaWait<0>();
      release_keys(b.v_empty[place.stage]);
      place.Advance();
    } else {
      release(b.q_empty);
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows.sum[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = first_row + half * 8;
      const int64_t token = int64_t{tile.q_begin} + row;
      if (lane % 4 == 0 && row < tile.q_rows) {
        p.lse[token * p.num_heads + tile.head] =
            sum > 0.0f ? rows.max[half] * p.scale + logf(sum) : -INFINITY;
      }
      Bf16* const out = static_cast<Bf16*>(p.out) + token * p.out_stride + tile.head * p.value_dim;
      // Two lanes exchange halves first, so that each writes four columns, and four lanes a sector.
      const bool odd = lane % 2 != 0;
      const int lane_column = odd ? 8 + (lane % 4 - 1) * 2 : lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; n += 2) {
        const uint32_t left =
            PackBf16(o[n * 4 + half * 2] * inverse, o[n * 4 + half * 2 + 1] * inverse);
        const uint32_t right =
            PackBf16(o[n * 4 + 4 + half * 2] * inverse, o[n * 4 + 5 + half * 2] * inverse);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
        const int column = n * 8 + lane_column;
        if (row < tile.q_rows && column < p.value_dim) {
          *reinterpret_cast<uint2*>(out + column) =
              odd ? make_uint2(other, right) : make_uint2(left, other);
        }
      }
    }
  }
}

#endif  // EK_HAS_SM90A

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    SoftmaxForwardSm90Kernel(const __grid_constant__ SoftmaxForwardParams p,
                             const __grid_constant__ ForwardTensorMaps maps) {
#if defined(EK_HAS_SM90A)
  extern __shared__ uint8_t shared[];
  __shared__ ForwardBarriers b;
  __shared__ ForwardWork work;
  __shared__ uint32_t mail;
  ForwardTiles tiles;
  tiles.q = (SharedAddress(shared) + 1023) / 1024 * 1024;
  tiles.k = tiles.q + Shape::kQBytes;
  tiles.v = tiles.k + Shape::kStages * Shape::kTileBytes;
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = Shape::kConsumers * 4;
    InitBarrier(SharedAddress(&b.ticket_full), 1);
    InitBarrier(SharedAddress(&b.ticket_empty), 1);
    InitBarrier(SharedAddress(&b.q_full), 1);
    InitBarrier(SharedAddress(&b.q_empty), kConsumerWarps);
    for (int i = 0; i < Shape::kStages; ++i) {
      InitBarrier(SharedAddress(&b.k_full[i]), 1);
      InitBarrier(SharedAddress(&b.v_full[i]), 1);
      InitBarrier(SharedAddress(&b.k_empty[i]), kConsumerWarps * Shape::kCluster);
      InitBarrier(SharedAddress(&b.v_empty[i]), kConsumerWarps * Shape::kCluster);
    }
    FenceSharedForAsync();
  }
  __syncthreads();
  if constexpr (Shape::kCluster > 1) ClusterSync();
  if (threadIdx.x < 128) {
    LowerRegisters<40>();  // with twice 232 the 504 of three warpgroups at launch: more would wait
    if (threadIdx.x == 0) ProduceForward<Shape>(p, maps, b, tiles, work, mail);
  } else {
    RaiseRegisters<232>();
    Consume<Shape>(p, b, tiles, work, threadIdx.x / 128 - 1);
  }
  // The other block may still arrive here.
  if constexpr (Shape::kCluster > 1) ClusterSync();
#endif
}

template <typename Shape>
cudaError_t Launch(const SoftmaxForwardParams& p, cudaStream_t stream) {
  if (p.plan.tiling.forward_queries != Shape::kQueries) return cudaErrorInvalidValue;
  ForwardTensorMaps maps;
  cudaError_t error =
      EncodeTensorMap(&maps.q, p.q, p.q_rows, p.num_heads, p.head_dim, p.q_stride, Shape::kQueries);
  if (error == cudaSuccess) {
    error = EncodeTensorMap(&maps.k, p.k, p.kv_rows, p.num_kv_heads, p.head_dim, p.k_stride,
                            Shape::kKeys / Shape::kCluster);
  }
  if (error == cudaSuccess) {
    error = EncodeTensorMap(&maps.v, p.v, p.kv_rows, p.num_kv_heads, p.value_dim, p.v_stride,
                            Shape::kKeys / Shape::kCluster);
  }
  if (error != cudaSuccess) return error;
  int device = 0, multiprocessors = 0;
  error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  const auto kernel = SoftmaxForwardSm90Kernel<Shape>;
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 Shape::kSharedBytes);
  }
  if (error != cudaSuccess) return error;
  const int64_t clusters =
      std::min<int64_t>(multiprocessors, p.plan.num_forward_tiles * p.num_heads) / Shape::kCluster;
  LaunchOptions options;
  options.cluster = Shape::kCluster;
  return LaunchKernel(kernel, dim3(static_cast<unsigned>(clusters * Shape::kCluster)),
                      Shape::kThreads, Shape::kSharedBytes, options, stream, p, maps);
}

}  // namespace

cudaError_t LaunchSoftmaxForwardSm90(const SoftmaxForwardParams& p, cudaStream_t stream) {
  const int dim = std::max(p.head_dim, p.value_dim);
  if (dim <= 64) return Launch<ForwardShape<64, 1>>(p, stream);
  if (dim > 128) return Launch<ForwardShape<256, 1>>(p, stream);
  // Clusters save energy where keys and values are read fastest for what is multiplied
  // (docs/kernels.md).
  const bool even_group = p.num_heads / p.num_kv_heads % 2 == 0;
  if (even_group) return Launch<ForwardShape<128, 2>>(p, stream);
  return Launch<ForwardShape<128, 1>>(p, stream);
}

}  // namespace evenkeel
