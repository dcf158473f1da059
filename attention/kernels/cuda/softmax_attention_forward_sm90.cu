// Forward pass on Hopper (after Shah et al., FlashAttention-3, 2024). As many blocks as
// multiprocessors share out the query tiles, longest first. In a block one warp feeds tiles to
// shared memory by bulk tensor copies while two warpgroups compute, each 64 of the 128 queries:
//   * within a warpgroup, the scores of the next key block are computed while the output of the
//   current
//     one is, and the exponentials of the next run under the tail of the latter;
//   * between the two, named barriers let one multiply while the other takes exponentials.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/hopper.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_sm90.h"
#include "attention/kernels/cuda/tensor_map.h"
#include "attention/kernels/cuda/tile_ticket.cuh"

namespace evenkeel {
namespace {

template <int kDim>
struct Sm90Shape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kThreads = (1 + kConsumers) * 128;
  static constexpr int kQueries = kConsumers * 64;
  static constexpr int kKeys = kDim <= 128 ? 128 : 64;
  static constexpr int kStages = 2;
  static constexpr int kQBytes = kQueries * kHeadDim * 2;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;  // of keys, and of values
  // Tiles start at multiples of 1024 bytes; the base of shared memory need not.
  static constexpr int kSharedBytes = 1024 + kQBytes + 2 * kStages * kTileBytes;
};

struct TensorMaps {
  CUtensorMap q, k, v;  // boxes of 64 columns, one head, a tile's rows
};

struct Barriers {
  uint64_t q_full, q_empty;
  uint64_t k_full[2], k_empty[2], v_full[2], v_empty[2];
};

#if defined(EK_HAS_SM90A)

// Tiles of this block: rounds over the sorted list, every other one backwards, so that no block
// gets the longest of every round.
__device__ __forceinline__ int64_t TileOfRound(int round) {
  const int64_t place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  return int64_t{round} * gridDim.x + place;
}

template <typename Shape>
__device__ __forceinline__ void Produce(const SoftmaxForwardParams& p, const TensorMaps& maps,
                                        Barriers& b, uint32_t q_tile, uint32_t k_tiles,
                                        uint32_t v_tiles) {
  const int64_t num_tiles = p.plan.num_forward_tiles * p.num_heads;
  const int group = p.num_heads / p.num_kv_heads;
  RingPlace place;
  uint32_t q_parity = 1;  // of the phase before the first: an empty buffer is free at once
  for (int round = 0;; ++round) {
    const int64_t index = TileOfRound(round);
    if (int64_t{round} * gridDim.x >= num_tiles) break;
    if (index >= num_tiles) continue;
    const auto [tile_index, head] =
        QueryTicketOf(p.plan.forward_tiles, index, p.num_heads, p.num_kv_heads);
    const QueryTile& tile = p.plan.forward_tiles[tile_index];
    const int num_keys = tile.num_keys;
    if (num_keys <= 0) continue;
    WaitBarrier(SharedAddress(&b.q_empty), q_parity);
    q_parity ^= 1;
    CopyTile<Shape::kQueries, Shape::kHeadDim>(q_tile, &maps.q, SharedAddress(&b.q_full), head,
                                               tile.q_begin);
    for (int block = (num_keys - 1) / Shape::kKeys; block >= 0; --block) {
      const int row = tile.kv_begin + block * Shape::kKeys;
      WaitBarrier(SharedAddress(&b.k_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape::kKeys, Shape::kHeadDim>(k_tiles + place.stage * Shape::kTileBytes, &maps.k,
                                              SharedAddress(&b.k_full[place.stage]), head / group,
                                              row);
      WaitBarrier(SharedAddress(&b.v_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape::kKeys, Shape::kHeadDim>(v_tiles + place.stage * Shape::kTileBytes, &maps.v,
                                              SharedAddress(&b.v_full[place.stage]), head / group,
                                              row);
      place.Advance();
    }
  }
}

// s = Q K^T for the warpgroup's 64 queries; asynchronous.
template <typename Shape>
__device__ __forceinline__ void StartScores(float (&s)[Shape::kKeys / 2], uint32_t q_rows,
                                            uint32_t k_tile) {
  WgmmaFence();
#pragma unroll
  for (int d = 0; d < Shape::kHeadDim; d += 16) {
    const uint32_t within = (d % 64) * 2;
    Wgmma(s, OperandDescriptor(q_rows + d / 64 * (Shape::kQueries * 128) + within, 16),
          OperandDescriptor(k_tile + d / 64 * (Shape::kKeys * 128) + within, 16), d > 0);
  }
  WgmmaCommit();
}

// o += P V; asynchronous.
template <typename Shape>
__device__ __forceinline__ void StartOutput(float (&o)[Shape::kHeadDim / 2],
                                            const uint32_t (&p)[Shape::kKeys / 16][4],
                                            uint32_t v_tile) {
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < Shape::kKeys / 16; ++k) {
    WgmmaRowMajorB(o, p[k], OperandDescriptor(v_tile + k * 16 * 128, Shape::kKeys * 128));
  }
  WgmmaCommit();
}

struct RowState {
  float max[2];
  float sum[2];
};

// Scores become exponentials; `shrink` is what earlier sums and outputs are to be multiplied by.
template <int kKeys>
__device__ __forceinline__ void TakeExponentials(float (&s)[kKeys / 2], RowState& rows, float scale,
                                                 float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = s[half * 2];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      most = fmaxf(most, fmaxf(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]));
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    most = fmaxf(most, rows.max[half]);
    // A row that has seen no key yet keeps -infinity; 0 stands in to avoid inf - inf.
    const float base = most == -INFINITY ? 0.0f : most * scale;
    shrink[half] = Exp2(rows.max[half] * scale - base);
    rows.max[half] = most;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = half * 2; e < half * 2 + 2; ++e) {
        s[n * 4 + e] = Exp2(s[n * 4 + e] * scale - base);
        sum += s[n * 4 + e];
      }
    }
    rows.sum[half] = rows.sum[half] * shrink[half] + sum;
  }
}

template <int kKeys>
__device__ __forceinline__ void RoundToOperand(uint32_t (&p)[kKeys / 16][4],
                                               const float (&s)[kKeys / 2]) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) p[k][i] = PackBf16(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
  }
}

// Key c (of the block) is seen by this lane's first row if c < visible, by its second, 8 rows
// further, if c < visible + kSlope: 8 along the diagonal, 0 at the end of all keys.
template <int kKeys, int kSlope>
__device__ __forceinline__ void Mask(float (&s)[kKeys / 2], int visible, int lane) {
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int key = i / 4 * 8 + (lane % 4) * 2 + (i & 1);
    if (key >= visible + ((i >> 1) & 1) * kSlope) s[i] = -INFINITY;
  }
}

constexpr int kTurnBarrier = 1;  // and the next, one for each consumer
constexpr int kConsumersBarrier = 3;

template <typename Shape>
__device__ __forceinline__ void Consume(const SoftmaxForwardParams& p, Barriers& b, uint32_t q_tile,
                                        uint32_t k_tiles, uint32_t v_tiles, int consumer) {
  constexpr int kDim = Shape::kHeadDim, kKeys = Shape::kKeys;
  const int64_t num_tiles = p.plan.num_forward_tiles * p.num_heads;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const int first_row = consumer * 64 + warp * 16 + lane / 4;
  const uint32_t q_rows = q_tile + consumer * 64 * 128;
  const float scale = p.scale * kLog2E;
  const auto release = [&](uint64_t& barrier) {
    __syncwarp();
    if (lane == 0) Arrive(SharedAddress(&barrier));
  };
  const auto wait_turn = [&] { NamedBarrierSync(kTurnBarrier + consumer, 256); };
  const auto pass_turn = [&] { NamedBarrierArrive(kTurnBarrier + 1 - consumer, 256); };
  if (consumer == 1) pass_turn();  // the first consumer begins

  RingPlace place;
  uint32_t q_parity = 0;
  for (int round = 0;; ++round) {
    const int64_t index = TileOfRound(round);
    if (int64_t{round} * gridDim.x >= num_tiles) break;
    if (index >= num_tiles) continue;
    const auto [tile_index, head] =
        QueryTicketOf(p.plan.forward_tiles, index, p.num_heads, p.num_kv_heads);
    const QueryTile tile = p.plan.forward_tiles[tile_index];
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

      WaitBarrier(SharedAddress(&b.q_full), q_parity);
      q_parity ^= 1;
      WaitBarrier(SharedAddress(&b.k_full[place.stage]), place.parity);
      wait_turn();
      StartScores<Shape>(s, q_rows, k_tiles + place.stage * Shape::kTileBytes);
      pass_turn();
      WgmmaWait<0>();
      release(b.k_empty[place.stage]);
      if (block >= masked_from) Mask<kKeys, 8>(s, visible - block * kKeys, lane);
      // The last key ends the block for rows whose diagonal is past it.
      const int valid = num_keys - block * kKeys;
      if (valid < kKeys) Mask<kKeys, 0>(s, valid, lane);
      TakeExponentials<kKeys>(s, rows, scale, shrink);
      RoundToOperand<kKeys>(probabilities, s);

      // Rows past the last key hold whatever lies there: 0 times NaN would be NaN.
      if (valid < kKeys) {
        const uint32_t v_tile = v_tiles + place.stage * Shape::kTileBytes;
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
        StartScores<Shape>(s, q_rows, k_tiles + place.stage * Shape::kTileBytes);
        WaitBarrier(SharedAddress(&b.v_full[now.stage]), now.parity);
        StartOutput<Shape>(o, probabilities, v_tiles + now.stage * Shape::kTileBytes);
        pass_turn();
        WgmmaWait<1>();
        release(b.k_empty[place.stage]);
        if (block >= masked_from) Mask<kKeys, 8>(s, visible - block * kKeys, lane);
        TakeExponentials<kKeys>(s, rows, scale, shrink);
        WgmmaWait<0>();
        release(b.v_empty[now.stage]);
#pragma unroll
        for (int i = 0; i < kDim / 2; ++i) o[i] *= shrink[(i >> 1) & 1];
        RoundToOperand<kKeys>(probabilities, s);
      }
      release(b.q_empty);
      WaitBarrier(SharedAddress(&b.v_full[place.stage]), place.parity);
      StartOutput<Shape>(o, probabilities, v_tiles + place.stage * Shape::kTileBytes);
      WgmmaWait<0>();
      release(b.v_empty[place.stage]);
      place.Advance();
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows.sum[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = first_row + half * 8;
      if (row >= tile.q_rows) continue;
      const int64_t token = int64_t{tile.q_begin} + row;
      if (lane % 4 == 0) {
        p.lse[token * p.num_heads + head] =
            sum > 0.0f ? rows.max[half] * p.scale + logf(sum) : -INFINITY;
      }
      Bf16* out =
          static_cast<Bf16*>(p.out) + token * p.out_stride + head * p.value_dim + (lane % 4) * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        if (n * 8 >= p.value_dim) break;
        *reinterpret_cast<uint32_t*>(out + n * 8) =
            PackBf16(o[n * 4 + half * 2] * inverse, o[n * 4 + half * 2 + 1] * inverse);
      }
    }
  }
}

#endif  // EK_HAS_SM90A

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    SoftmaxForwardSm90Kernel(const __grid_constant__ SoftmaxForwardParams p,
                             const __grid_constant__ TensorMaps maps) {
#if defined(EK_HAS_SM90A)
  extern __shared__ uint8_t shared[];
  __shared__ Barriers b;
  const uint32_t q_tile = (SharedAddress(shared) + 1023) / 1024 * 1024;
  const uint32_t k_tiles = q_tile + Shape::kQBytes;
  const uint32_t v_tiles = k_tiles + Shape::kStages * Shape::kTileBytes;
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = Shape::kConsumers * 4;
    InitBarrier(SharedAddress(&b.q_full), 1);
    InitBarrier(SharedAddress(&b.q_empty), kConsumerWarps);
    for (int i = 0; i < Shape::kStages; ++i) {
      InitBarrier(SharedAddress(&b.k_full[i]), 1);
      InitBarrier(SharedAddress(&b.v_full[i]), 1);
      InitBarrier(SharedAddress(&b.k_empty[i]), kConsumerWarps);
      InitBarrier(SharedAddress(&b.v_empty[i]), kConsumerWarps);
    }
    FenceSharedForAsync();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    LowerRegisters<24>();
    if (threadIdx.x == 0) Produce<Shape>(p, maps, b, q_tile, k_tiles, v_tiles);
  } else {
    RaiseRegisters<240>();
    Consume<Shape>(p, b, q_tile, k_tiles, v_tiles, threadIdx.x / 128 - 1);
  }
#endif
}

template <int kDim>
cudaError_t Launch(const SoftmaxForwardParams& p, cudaStream_t stream) {
  using Shape = Sm90Shape<kDim>;
  if (p.plan.tiling.forward_queries != Shape::kQueries) return cudaErrorInvalidValue;
  TensorMaps maps;
  cudaError_t error =
      EncodeTensorMap(&maps.q, p.q, p.q_rows, p.num_heads, p.head_dim, p.q_stride, Shape::kQueries);
  if (error == cudaSuccess) {
    error = EncodeTensorMap(&maps.k, p.k, p.kv_rows, p.num_kv_heads, p.head_dim, p.k_stride,
                            Shape::kKeys);
  }
  if (error == cudaSuccess) {
    error = EncodeTensorMap(&maps.v, p.v, p.kv_rows, p.num_kv_heads, p.value_dim, p.v_stride,
                            Shape::kKeys);
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
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(multiprocessors, p.plan.num_forward_tiles * p.num_heads));
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(p, maps);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSoftmaxForwardSm90(const SoftmaxForwardParams& p, cudaStream_t stream) {
  const int dim = std::max(p.head_dim, p.value_dim);
  if (dim <= 64) return Launch<64>(p, stream);
  if (dim <= 128) return Launch<128>(p, stream);
  return Launch<256>(p, stream);
}

}  // namespace evenkeel
