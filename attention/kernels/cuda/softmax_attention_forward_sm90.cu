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
  static constexpr int kQBytes = kQueries * kDim * 2;
  static constexpr int kTileBytes = kKeys * kDim * 2;  // of keys, and of values
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

// Place in the ring of two stages, and the parity of its current phase.
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance() {
    stage ^= 1;
    parity ^= stage == 0;
  }
};

template <typename Shape>
__device__ __forceinline__ void CopyTile(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                         int rows, int dim, int head, int row) {
  // Columns past the head size arrive as zeros and count as bytes.
  constexpr int kPanels = Shape::kHeadDim / 64;
  ArriveExpectingBytes(barrier, rows * Shape::kHeadDim * 2);
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    CopyBox(shared + panel * rows * 128, map, barrier, panel * 64, head, row);
  }
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
    const QueryTile tile = p.plan.forward_tiles[index / p.num_heads];
    const int head = static_cast<int>(index % p.num_heads);
    const int num_keys = tile.visible + tile.q_rows - 1;
    if (num_keys <= 0) continue;
    WaitBarrier(SharedAddress(&b.q_empty), q_parity);
    q_parity ^= 1;
    CopyTile<Shape>(q_tile, &maps.q, SharedAddress(&b.q_full), Shape::kQueries, p.head_dim, head,
                    tile.q_begin);
    for (int block = (num_keys - 1) / Shape::kKeys; block >= 0; --block) {
      const int row = tile.kv_begin + block * Shape::kKeys;
      WaitBarrier(SharedAddress(&b.k_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape>(k_tiles + place.stage * Shape::kTileBytes, &maps.k,
                      SharedAddress(&b.k_full[place.stage]), Shape::kKeys, p.head_dim, head / group,
                      row);
      WaitBarrier(SharedAddress(&b.v_empty[place.stage]), place.parity ^ 1);
      CopyTile<Shape>(v_tiles + place.stage * Shape::kTileBytes, &maps.v,
                      SharedAddress(&b.v_full[place.stage]), Shape::kKeys, p.value_dim,
                      head / group, row);
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

// Key c (of the block) is seen by this lane's first row if c < visible.
template <int kKeys>
__device__ __forceinline__ void Mask(float (&s)[kKeys / 2], int visible, int lane) {
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int key = i / 4 * 8 + (lane % 4) * 2 + (i & 1);
    if (key >= visible + ((i >> 1) & 1) * 8) s[i] = -INFINITY;
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
    const QueryTile tile = p.plan.forward_tiles[index / p.num_heads];
    const int head = static_cast<int>(index % p.num_heads);
    const int num_keys = tile.visible + tile.q_rows - 1;
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
      if (block >= masked_from) Mask<kKeys>(s, visible - block * kKeys, lane);
      TakeExponentials<kKeys>(s, rows, scale, shrink);
      RoundToOperand<kKeys>(probabilities, s);

      // Rows past the last key hold whatever lies there: 0 times NaN would be NaN.
      const int valid = num_keys - block * kKeys;
      if (valid < kKeys) {
        const uint32_t v_tile = v_tiles + place.stage * Shape::kTileBytes;
        WaitBarrier(SharedAddress(&b.v_full[place.stage]), place.parity);
        const int chunks = (kKeys - valid) * 8;
        for (int i = threadIdx.x - 128; i < chunks * (kDim / 64); i += 256) {
          const uint32_t at = v_tile + i / chunks * (kKeys * 128) + valid * 128 + i % chunks * 16;
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
        }
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
        if (block >= masked_from) Mask<kKeys>(s, visible - block * kKeys, lane);
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

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time so that nothing links against the driver.
EncodeTiled FindEncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &result) != cudaSuccess) {
    return nullptr;
  }
  return reinterpret_cast<EncodeTiled>(function);
}

// A map of bf16 [rows, heads, dim] with boxes of [box_rows, 1, 64], swizzled by 128 bytes.
cudaError_t Encode(EncodeTiled encode, CUtensorMap* map, const void* data, int64_t rows, int heads,
                   int dim, int64_t stride, int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(heads),
                              static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(dim) * 2,
                                static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[] = {64, 1, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <int kDim>
cudaError_t Launch(const SoftmaxForwardParams& p, cudaStream_t stream) {
  using Shape = Sm90Shape<kDim>;
  if (p.plan.tiling.forward_queries != Shape::kQueries) return cudaErrorInvalidValue;
  static const EncodeTiled encode = FindEncodeTiled();
  if (encode == nullptr) return cudaErrorNotSupported;
  TensorMaps maps;
  cudaError_t error =
      Encode(encode, &maps.q, p.q, p.q_rows, p.num_heads, p.head_dim, p.q_stride, Shape::kQueries);
  if (error == cudaSuccess) {
    error = Encode(encode, &maps.k, p.k, p.kv_rows, p.num_kv_heads, p.head_dim, p.k_stride,
                   Shape::kKeys);
  }
  if (error == cudaSuccess) {
    error = Encode(encode, &maps.v, p.v, p.kv_rows, p.num_kv_heads, p.value_dim, p.v_stride,
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
