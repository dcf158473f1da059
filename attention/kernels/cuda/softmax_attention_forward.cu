// Forward pass. One block takes one query tile of one head and walks its keys from the last to the
// first, two stages of keys and values in flight:
//   S = Q K^T;  m' = max(m, rowmax S);  P = exp(scale (S - m'));  O = O exp(scale (m - m')) + P V.
// Scores never leave registers: the accumulator layout of S is the operand layout of P. Every warp
// owns its query rows from start to end, so the only barrier is the one that hands over a stage.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/softmax_attention_sm90.h"
#include "attention/kernels/cuda/tile_ticket.cuh"

namespace evenkeel {
namespace {

template <int kDim>
struct ForwardShape {
  static constexpr int kHeadDim = kDim;  // head sizes up to this one
  static constexpr int kWarps = kDim <= 128 ? 4 : 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRowTiles = kDim <= 128 ? 2 : 1;  // 16-row tiles a warp
  static constexpr int kQueries = kWarps * kRowTiles * 16;
  static constexpr int kBlocksPerMultiprocessor = kDim <= 128 ? 2 : 1;
  static constexpr int kKeys = kDim <= 128 ? 64 : 32;
  static constexpr int kQBytes = kQueries * kDim * 2;
  static constexpr int kStageBytes = kKeys * kDim * 2 * 2;
  static constexpr int kSharedBytes = kQBytes + 2 * kStageBytes;
};

template <typename Shape>
__device__ __forceinline__ void LoadKeysAndValues(const SoftmaxForwardParams& p, const Bf16* k,
                                                  const Bf16* v, uint32_t stage, int block,
                                                  int num_keys, int thread) {
  const int rows = num_keys - block * Shape::kKeys;
  const int64_t row = int64_t{block} * Shape::kKeys;
  LoadTile<Shape::kKeys, Shape::kHeadDim, Shape::kThreads>(stage, k + row * p.k_stride, p.k_stride,
                                                           rows, p.head_dim / 8, thread);
  LoadTile<Shape::kKeys, Shape::kHeadDim, Shape::kThreads>(stage + Shape::kStageBytes / 2,
                                                           v + row * p.v_stride, p.v_stride, rows,
                                                           p.value_dim / 8, thread);
}

template <typename Shape>
__device__ __forceinline__ void StoreEmptyTile(const SoftmaxForwardParams& p, const QueryTile& tile,
                                               int head) {
  Bf16* out = static_cast<Bf16*>(p.out) + int64_t{tile.q_begin} * p.out_stride + head * p.value_dim;
  for (int i = threadIdx.x; i < tile.q_rows * p.value_dim; i += Shape::kThreads) {
    out[i / p.value_dim * p.out_stride + i % p.value_dim] = __float2bfloat16(0.0f);
  }
  for (int i = threadIdx.x; i < tile.q_rows; i += Shape::kThreads) {
    p.lse[(int64_t{tile.q_begin} + i) * p.num_heads + head] = -INFINITY;
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerMultiprocessor)
    SoftmaxForwardKernel(const __grid_constant__ SoftmaxForwardParams p) {
  constexpr int kDim = Shape::kHeadDim, kKeys = Shape::kKeys, kRowTiles = Shape::kRowTiles;
  constexpr int kKeyTiles = kKeys / 8, kDimTiles = kDim / 8;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t q_tile = SharedAddress(shared);
  const uint32_t stages = q_tile + Shape::kQBytes;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;

  const auto [tile_index, head] =
      QueryTicketOf(p.plan.forward_tiles, blockIdx.x, p.num_heads, p.num_kv_heads);
  const QueryTile tile = p.plan.forward_tiles[tile_index];
  const int kv_head = head / (p.num_heads / p.num_kv_heads);
  const int num_keys = tile.num_keys;
  if (num_keys <= 0) return StoreEmptyTile<Shape>(p, tile, head);

  const Bf16* q =
      static_cast<const Bf16*>(p.q) + int64_t{tile.q_begin} * p.q_stride + head * p.head_dim;
  const Bf16* k =
      static_cast<const Bf16*>(p.k) + int64_t{tile.kv_begin} * p.k_stride + kv_head * p.head_dim;
  const Bf16* v =
      static_cast<const Bf16*>(p.v) + int64_t{tile.kv_begin} * p.v_stride + kv_head * p.value_dim;

  const int num_blocks = (num_keys + kKeys - 1) / kKeys;
  LoadTile<Shape::kQueries, kDim, Shape::kThreads>(q_tile, q, p.q_stride, tile.q_rows,
                                                   p.head_dim / 8, thread);
  LoadKeysAndValues<Shape>(p, k, v, stages, num_blocks - 1, num_keys, thread);
  CommitCopies();

  float o[kRowTiles][kDimTiles][4] = {};
  float row_max[kRowTiles][2], row_sum[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    row_max[r][0] = row_max[r][1] = -INFINITY;
    row_sum[r][0] = row_sum[r][1] = 0.0f;
  }
  const uint32_t rows_first = LaneOffset(lane, true), cols_first = LaneOffset(lane, false);
  const int warp_row = warp * kRowTiles * 16;
  const float scale = p.scale * kLog2E;
  // Row i of this lane's first row tile; key c is seen if c < first_visible + (offset of the row)
  // and c < num_keys.
  const int first_visible = tile.visible + warp_row + lane / 4;
  const int full_blocks = tile.visible > 0 ? min(tile.visible, num_keys) / kKeys : 0;

  uint32_t stage = stages;
  for (int block = num_blocks - 1; block >= 0; --block) {
    WaitForCopies<0>();
    __syncthreads();
    const uint32_t other = stages + (stages + Shape::kStageBytes - stage);
    if (block > 0) LoadKeysAndValues<Shape>(p, k, v, other, block - 1, num_keys, thread);
    CommitCopies();
    const uint32_t k_tile = stage, v_tile = stage + Shape::kStageBytes / 2;
    stage = other;

    float s[kRowTiles][kKeyTiles][4] = {};
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        LoadMatrices(a[r], BlockAddress<Shape::kQueries>(q_tile, rows_first, warp_row + r * 16, d));
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t b[4];
        LoadMatrices(b, BlockAddress<kKeys>(k_tile, cols_first, n * 8, d));
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) MmaPair(s[r][n], s[r][n + 1], a[r], b);
      }
    }

    if (block >= full_blocks) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = block * kKeys + n * 8 + (lane % 4) * 2 + (e & 1);
            const int seen = min(first_visible + r * 16 + (e >> 1) * 8, num_keys);
            if (key >= seen) s[r][n][e] = -INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = s[r][0][half * 2];
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
          most = fmaxf(most, fmaxf(s[r][n][half * 2], s[r][n][half * 2 + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        most = fmaxf(most, row_max[r][half]);
        // A row that has seen no key yet keeps -infinity; 0 stands in to avoid inf - inf.
        const float base = most == -INFINITY ? 0.0f : most * scale;
        const float shrink = Exp2(row_max[r][half] * scale - base);
        row_max[r][half] = most;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int e = half * 2; e < half * 2 + 2; ++e) {
            s[r][n][e] = Exp2(s[r][n][e] * scale - base);
            sum += s[r][n][e];
          }
        }
        row_sum[r][half] = row_sum[r][half] * shrink + sum;
#pragma unroll
        for (int n = 0; n < kDimTiles; ++n) {
          o[r][n][half * 2] *= shrink;
          o[r][n][half * 2 + 1] *= shrink;
        }
      }
    }

#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) AccumulatorsAsOperand(a[r], s[r][n], s[r][n + 1]);
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        LoadMatricesTransposed(b, BlockAddress<kKeys>(v_tile, rows_first, n * 8, d * 8));
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) MmaPair(o[r][d], o[r][d + 1], a[r], b);
      }
    }
  }

  // The warp's rows of Q are read by this warp alone: they carry its output to whole-row stores.
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum[r][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = warp_row + r * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && row < tile.q_rows) {
        p.lse[(int64_t{tile.q_begin} + row) * p.num_heads + head] =
            sum > 0.0f ? row_max[r][half] * p.scale + logf(sum) : -INFINITY;
      }
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        StoreShared4(q_tile + ElementOffset<Shape::kQueries>(row, n * 8 + (lane % 4) * 2),
                     PackBf16(o[r][n][half * 2] * inverse, o[r][n][half * 2 + 1] * inverse));
      }
    }
  }
  __syncwarp();
  Bf16* out = static_cast<Bf16*>(p.out) + int64_t{tile.q_begin} * p.out_stride + head * p.value_dim;
  constexpr int kChunks = kDim / 8;
#pragma unroll 4
  for (int i = lane; i < kRowTiles * 16 * kChunks; i += 32) {
    const int row = warp_row + i / kChunks, chunk = i % kChunks;
    if (row < tile.q_rows && chunk * 8 < p.value_dim) {
      *reinterpret_cast<uint4*>(out + row * p.out_stride + chunk * 8) =
          LoadShared16(q_tile + ElementOffset<Shape::kQueries>(row, chunk * 8));
    }
  }
}

template <int kDim>
cudaError_t Launch(const SoftmaxForwardParams& params, cudaStream_t stream) {
  using Shape = ForwardShape<kDim>;
  if (params.plan.tiling.forward_queries != Shape::kQueries) return cudaErrorInvalidValue;
  const auto kernel = SoftmaxForwardKernel<Shape>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>(params.plan.num_forward_tiles * params.num_heads);
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSoftmaxForward(const SoftmaxForwardParams& params, cudaStream_t stream) {
  const int dim = std::max(params.head_dim, params.value_dim);
  if (std::min(params.head_dim, params.value_dim) < 8 || dim > 256 || params.head_dim % 8 != 0 ||
      params.value_dim % 8 != 0 || params.num_kv_heads < 1 || params.q_rows < 0 ||
      params.kv_rows < 0 || params.num_heads % params.num_kv_heads != 0 ||
      params.q_stride % 8 != 0 || params.k_stride % 8 != 0 || params.v_stride % 8 != 0 ||
      params.out_stride % 8 != 0 || params.plan.num_forward_tiles * params.num_heads > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  if (params.plan.num_forward_tiles == 0) return cudaSuccess;
  if (!params.portable) {
    int device = 0, major = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (error != cudaSuccess) return error;
    if (major == 9) return LaunchSoftmaxForwardSm90(params, stream);
  }
  if (dim <= 64) return Launch<64>(params, stream);
  if (dim <= 128) return Launch<128>(params, stream);
  return Launch<256>(params, stream);
}

}  // namespace evenkeel
