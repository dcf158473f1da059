// Backward pass. With P = exp(scale S - lse), delta = rowsum(dO O):
//   dV = P^T dO;  dP = dO V^T;  dS = P (dP - delta);  dK = scale dS^T Q;  dQ = scale dS K.
// One block takes one key tile of one key/value head, keeps its dK and dV in registers and walks
// every task, query head of the group and query tile that sees some of its keys: they are summed in
// one fixed order. dQ of a query tile gets contributions from many blocks; they are added in
// float32 in ascending key order, each block waiting for its turn, so that no result depends on
// timing. Within a task blocks walk the query tiles from the last to the first and start in
// ascending key order: each follows one step behind the one before it and hardly ever waits.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/softmax_attention_sm90.h"
#include "attention/kernels/cuda/softmax_backward_walk.cuh"
#include "attention/kernels/cuda/softmax_backward_workspace.h"
#include "attention/kernels/cuda/tile_product.cuh"

namespace evenkeel {
namespace {

// Warps are laid out 2 x 4 over [queries, keys] for S and dP and over [queries, D] for dQ, and 4 x
// 2 over [keys, D] for dK and dV.
template <int kDim>
struct BackwardShape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kThreads = 256;
  static constexpr int kQueries = kDim <= 64 ? 128 : 64;
  static constexpr int kKeys = kDim <= 128 ? 128 : 64;
  static constexpr int kStages = kDim <= 128 ? 2 : 1;
  static constexpr int kKeyBytes = kKeys * kDim * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kStageBytes = 2 * kQueryBytes + 2 * kQueries * 4;  // Q, dO, lse, delta
  static constexpr int kScoreBytes = kQueries * kKeys * 2;
  static constexpr int kSharedBytes = 2 * kKeyBytes + 2 * kScoreBytes + kStages * kStageBytes;
  static constexpr int kTileFloats = kQueries * kDim;  // of dQ
};

int64_t RoundUp(int64_t a, int64_t b) {
  return (a + b - 1) / b * b;
}

int PaddedDim(int head_dim, int value_dim) {
  const int dim = std::max(head_dim, value_dim);
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

// One block per query tile and head; tile_rows: a multiple of 32.
__global__ void RowStatisticsKernel(const __grid_constant__ SoftmaxBackwardParams b, float* lse,
                                    float* delta, int tile_rows) {
  const SoftmaxForwardParams& p = b.forward;
  const int tile_index = blockIdx.x / p.num_heads, head = blockIdx.x % p.num_heads;
  const QueryTile tile = p.plan.query_tiles[tile_index];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_seeing = tile.num_keys > 0 ? 1 - tile.visible : tile_rows;  // a key
  // A lane takes 8 columns, a warp as many rows at a time as it has lanes for.
  const int chunks = p.value_dim / 8;
  int lanes = 1;
  while (lanes < chunks) lanes *= 2;
  const int rows_at_once = 32 / lanes, chunk = lane % lanes;
  for (int first = warp * rows_at_once; first < tile_rows;
       first += static_cast<int>(blockDim.x) / 32 * rows_at_once) {
    const int row = first + lane / lanes;
    const int64_t token = int64_t{tile.q_begin} + row;
    float sum = 0.0f;
    // exp2(s - infinity) = 0: rows past the end and rows without keys take part in nothing.
    float row_lse = INFINITY;
    if (row < tile.q_rows) {
      if (chunk < chunks) {
        const int64_t column = int64_t{head} * p.value_dim + chunk * 8;
        const uint4 out = *reinterpret_cast<const uint4*>(static_cast<const Bf16*>(p.out) +
                                                          token * p.out_stride + column);
        const uint4 dout = *reinterpret_cast<const uint4*>(static_cast<const Bf16*>(b.dout) +
                                                           token * b.dout_stride + column);
        const uint32_t x[4] = {out.x, out.y, out.z, out.w}, y[4] = {dout.x, dout.y, dout.z, dout.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 u = UnpackBf16(x[i]), v = UnpackBf16(y[i]);
          sum += u.x * v.x + u.y * v.y;
        }
      }
      if (row >= first_seeing) row_lse = p.lse[token * p.num_heads + head] * kLog2E;
    }
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (chunk == 0) {
      lse[int64_t{blockIdx.x} * tile_rows + row] = row_lse;
      delta[int64_t{blockIdx.x} * tile_rows + row] = sum;
    }
  }
}

// Where thread `thread` keeps element e of its fragment `fragment` of a dQ tile: whole 16-byte
// words a lane where four floats can be added at once, consecutive floats across lanes elsewhere.
__device__ __forceinline__ int DqOffset(int fragment, int thread, int e) {
#if __CUDA_ARCH__ >= 900
  return (fragment * 256 + thread) * 4 + e;
#else
  return (fragment * 4 + e) * 256 + thread;
#endif
}

__device__ __forceinline__ void StoreFragment(float* tile, int fragment, int thread,
                                              const float (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  *reinterpret_cast<float4*>(tile + DqOffset(fragment, thread, 0)) =
      make_float4(x[0], x[1], x[2], x[3]);
#else
#pragma unroll
  for (int e = 0; e < 4; ++e) tile[DqOffset(fragment, thread, e)] = x[e];
#endif
}

__device__ __forceinline__ void AddFragment(float* tile, int fragment, int thread,
                                            const float (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                   tile + DqOffset(fragment, thread, 0)),
               "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
#else
#pragma unroll
  for (int e = 0; e < 4; ++e) atomicAdd(tile + DqOffset(fragment, thread, e), x[e]);
#endif
}

// Fragment index of the accumulators of dQ, and where lane's elements of it lie in the tile.
template <typename Shape>
struct DqLayout {
  static constexpr int kRowTiles = Shape::kQueries / 32;     // two warps over the queries
  static constexpr int kColTiles = Shape::kHeadDim / 4 / 8;  // four over D
  __device__ static int Row(int warp, int lane, int r, int half) {
    return (warp / 4) * (Shape::kQueries / 2) + r * 16 + half * 8 + lane / 4;
  }
  __device__ static int Col(int warp, int lane, int c) {
    return (warp % 4) * (Shape::kHeadDim / 4) + c * 8 + (lane % 4) * 2;
  }
};

// Rounds the summed dQ. One block per query tile and head.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    RoundDqKernel(const __grid_constant__ SoftmaxBackwardParams b, const float* dq) {
  using Layout = DqLayout<Shape>;
  const SoftmaxForwardParams& p = b.forward;
  const int head = blockIdx.x % p.num_heads;
  const QueryTile tile = p.plan.query_tiles[blockIdx.x / p.num_heads];
  const float* source = dq + int64_t{blockIdx.x} * Shape::kTileFloats;
  const bool empty = tile.num_keys <= 0;  // no block has written this tile
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int r = 0; r < Layout::kRowTiles; ++r) {
#pragma unroll
    for (int c = 0; c < Layout::kColTiles; ++c) {
      const int fragment = r * Layout::kColTiles + c;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Layout::Row(warp, lane, r, half), col = Layout::Col(warp, lane, c);
        if (row >= tile.q_rows || col >= p.head_dim) continue;
        const float x = empty ? 0.0f : source[DqOffset(fragment, thread, half * 2)];
        const float y = empty ? 0.0f : source[DqOffset(fragment, thread, half * 2 + 1)];
        Bf16* target = static_cast<Bf16*>(b.dq) + (int64_t{tile.q_begin} + row) * b.dq_stride +
                       head * p.head_dim + col;
        *reinterpret_cast<uint32_t*>(target) = PackBf16(x * p.scale, y * p.scale);
      }
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void LoadQueries(const SoftmaxBackwardParams& b,
                                            const SoftmaxBackwardWorkspace& w, const Walk& walk,
                                            int first_head, uint32_t stage, int thread) {
  constexpr int kQueries = Shape::kQueries;
  const SoftmaxForwardParams& p = b.forward;
  const int head = first_head + walk.group_head;
  const int64_t row = int64_t{walk.task.q_begin} + walk.tile * kQueries;
  const int rows = walk.task.q_len - walk.tile * kQueries;
  LoadTile<kQueries, Shape::kHeadDim, Shape::kThreads>(
      stage, static_cast<const Bf16*>(p.q) + row * p.q_stride + head * p.head_dim, p.q_stride, rows,
      p.head_dim / 8, thread);
  LoadTile<kQueries, Shape::kHeadDim, Shape::kThreads>(
      stage + Shape::kQueryBytes,
      static_cast<const Bf16*>(b.dout) + row * b.dout_stride + head * p.value_dim, b.dout_stride,
      rows, p.value_dim / 8, thread);
  const int64_t statistics =
      (int64_t{walk.task.first_tile + walk.tile} * p.num_heads + head) * kQueries;
  if (thread < kQueries / 2) {
    const bool is_lse = thread < kQueries / 4;
    const int at = is_lse ? thread : thread - kQueries / 4;
    CopyAsync16(stage + 2 * Shape::kQueryBytes + thread * 16,
                (is_lse ? w.lse : w.delta) + statistics + at * 4, true);
  }
}

// Adds to, or writes, one output of the key tile. `covered` has a bit for every row of this lane
// (row tile r, half: bit 2 r + half) that belongs to a task.
template <int kM, int kN>
__device__ __forceinline__ void StoreKeyGradient(const float (&acc)[kM][kN][4], void* target,
                                                 int64_t stride, int64_t row, int head_col, int col,
                                                 int dim, float scale, KeyGradientMode mode,
                                                 uint32_t covered, int lane) {
#pragma unroll
  for (int r = 0; r < kM; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if ((covered >> (2 * r + half) & 1) == 0) continue;
      const int64_t at = (row + r * 16 + half * 8 + lane / 4) * stride + head_col;
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        const int column = col + c * 8 + (lane % 4) * 2;
        if (column >= dim) continue;
        const float x = acc[r][c][half * 2] * scale, y = acc[r][c][half * 2 + 1] * scale;
        if (mode == KeyGradientMode::kWriteBf16) {
          *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(target) + at + column) = PackBf16(x, y);
        } else {
          auto* place = reinterpret_cast<float2*>(static_cast<float*>(target) + at + column);
          float2 old = make_float2(0.0f, 0.0f);
          if (mode == KeyGradientMode::kAddFloat32) old = *place;
          *place = make_float2(old.x + x, old.y + y);
        }
      }
    }
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    SoftmaxBackwardKernel(const __grid_constant__ SoftmaxBackwardParams b,
                          const __grid_constant__ SoftmaxBackwardWorkspace w) {
  constexpr int kDim = Shape::kHeadDim, kQueries = Shape::kQueries, kKeys = Shape::kKeys;
  constexpr int kScoreRows = kQueries / 32, kScoreCols = kKeys / 32;  // fragments of S a warp
  constexpr int kGradRows = kKeys / 64, kGradCols = kDim / 16;        // of dK and dV
  constexpr int kDqRows = DqLayout<Shape>::kRowTiles, kDqCols = DqLayout<Shape>::kColTiles;
  const SoftmaxForwardParams& p = b.forward;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ uint32_t ticket;
  const uint32_t k_tile = SharedAddress(shared);
  const uint32_t v_tile = k_tile + Shape::kKeyBytes;
  const uint32_t p_tile = v_tile + Shape::kKeyBytes;
  const uint32_t ds_tile = p_tile + Shape::kScoreBytes;
  const uint32_t stages = ds_tile + Shape::kScoreBytes;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;

  // Tickets, not block indices: a block may wait only for blocks that run already.
  if (thread == 0) ticket = atomicAdd(w.counters, 1);
  __syncthreads();
  const auto [tile_index, kv_head] = TicketOf(p.plan.key_tiles, ticket, p.num_kv_heads);
  const KeyTile keys = p.plan.key_tiles[tile_index];
  const int group = p.num_heads / p.num_kv_heads, first_head = kv_head * group;
  uint32_t* const turns = w.counters + 1;

  Walk walk;
  SeekTask<Shape>(walk, p.plan.tasks, keys, keys.task_begin, lane);
  LoadTile<kKeys, kDim, Shape::kThreads>(
      k_tile,
      static_cast<const Bf16*>(p.k) + int64_t{keys.kv_begin} * p.k_stride + kv_head * p.head_dim,
      p.k_stride, keys.kv_rows, p.head_dim / 8, thread);
  LoadTile<kKeys, kDim, Shape::kThreads>(
      v_tile,
      static_cast<const Bf16*>(p.v) + int64_t{keys.kv_begin} * p.v_stride + kv_head * p.value_dim,
      p.v_stride, keys.kv_rows, p.value_dim / 8, thread);
  if (walk.valid) LoadQueries<Shape>(b, w, walk, first_head, stages, thread);
  CommitCopies();

  const uint32_t rows_first = LaneOffset(lane, true), cols_first = LaneOffset(lane, false);
  const int score_row = warp / 4 * (kQueries / 2), score_col = warp % 4 * (kKeys / 4);
  const int grad_row = warp / 2 * (kKeys / 4), grad_col = warp % 2 * (kDim / 2);
  const int dq_col = warp % 4 * (kDim / 4);
  const float scale = p.scale * kLog2E;

  float dk[kGradRows][kGradCols][4] = {}, dv[kGradRows][kGradCols][4] = {};
  uint32_t covered = 0;
  uint32_t* signal = nullptr;  // counter of the contribution that is still to be announced
  uint32_t stage = stages;

  while (walk.valid) {
    WaitForCopies<0>();
    __syncthreads();
    const Walk now = walk;
    const uint32_t q_tile = stage, do_tile = stage + Shape::kQueryBytes;
    const uint32_t statistics = stage + 2 * Shape::kQueryBytes;
    Advance<Shape>(walk, p.plan.tasks, keys, group, lane);
    if constexpr (Shape::kStages == 2) {
      stage = stages + (stages + Shape::kStageBytes - stage);
      if (walk.valid) LoadQueries<Shape>(b, w, walk, first_head, stage, thread);
      CommitCopies();
    }

    float s[kScoreRows][kScoreCols][4] = {}, dp[kScoreRows][kScoreCols][4] = {};
    AddProductNT<kQueries, kKeys, kDim>(s, PartAt<kQueries>(q_tile, rows_first, score_row, 0),
                                        PartAt<kKeys>(k_tile, cols_first, score_col, 0));
    AddProductNT<kQueries, kKeys, kDim>(dp, PartAt<kQueries>(do_tile, rows_first, score_row, 0),
                                        PartAt<kKeys>(v_tile, cols_first, score_col, 0));

    // Key c of the tile is seen by query i of the tile if begin <= c < min(end + i, limit).
    const int begin = now.task.kv_begin - keys.kv_begin;
    const int end = begin + now.task.visible + now.tile * kQueries;
    const int limit = begin + now.task.kv_len;
    const bool whole = begin <= 0 && min(end, limit) >= kKeys;
#pragma unroll
    for (int r = 0; r < kScoreRows; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = score_row + r * 16 + half * 8 + lane / 4;
        const int row_end = min(end + row, limit);
        float lse, delta;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(lse) : "r"(statistics + row * 4) : "memory");
        asm volatile("ld.shared.f32 %0, [%1];"
                     : "=f"(delta)
                     : "r"(statistics + kQueries * 4 + row * 4)
                     : "memory");
#pragma unroll
        for (int c = 0; c < kScoreCols; ++c) {
          const int col = score_col + c * 8 + (lane % 4) * 2;
          float x[2], y[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            x[e] = Exp2(s[r][c][half * 2 + e] * scale - lse);
            if (!whole && (col + e < begin || col + e >= row_end)) x[e] = 0.0f;
            y[e] = x[e] * (dp[r][c][half * 2 + e] - delta);
          }
          const uint32_t at = ElementOffset<kQueries>(row, col);
          StoreShared4(p_tile + at, PackBf16(x[0], x[1]));
          StoreShared4(ds_tile + at, PackBf16(y[0], y[1]));
        }
      }
    }
    __syncthreads();
    // The contribution of the step before has long arrived by now, so its fence waits for little.
    if (signal != nullptr && thread == 0) CountContribution(signal);

    const int64_t tile =
        int64_t{now.task.first_tile + now.tile} * p.num_heads + first_head + now.group_head;
    const int turn = (keys.kv_begin - now.task.first_key_tile_row) / kKeys;
    signal = turns + tile;
    uint32_t seen = ReadCounter(signal);  // arrives while the products run

    AddProductTN<kQueries, kQueries, kQueries>(dv,
                                               PartAt<kQueries>(p_tile, cols_first, 0, grad_row),
                                               PartAt<kQueries>(do_tile, rows_first, 0, grad_col));
    AddProductTN<kQueries, kQueries, kQueries>(dk,
                                               PartAt<kQueries>(ds_tile, cols_first, 0, grad_row),
                                               PartAt<kQueries>(q_tile, rows_first, 0, grad_col));
    float dq[kDqRows][kDqCols][4] = {};
    AddProductNN<kQueries, kKeys, kKeys>(dq, PartAt<kQueries>(ds_tile, rows_first, score_row, 0),
                                         PartAt<kKeys>(k_tile, rows_first, 0, dq_col));

    float* const dq_tile = w.dq + tile * Shape::kTileFloats;
    while (seen != static_cast<uint32_t>(turn)) seen = ReadCounter(signal);
#pragma unroll
    for (int r = 0; r < kDqRows; ++r) {
#pragma unroll
      for (int c = 0; c < kDqCols; ++c) {
        if (turn == 0) {
          StoreFragment(dq_tile, r * kDqCols + c, thread, dq[r][c]);
        } else {
          AddFragment(dq_tile, r * kDqCols + c, thread, dq[r][c]);
        }
      }
    }

    if (now.group_head == 0 && now.tile == now.first_tile) {
#pragma unroll
      for (int bit = 0; bit < 2 * kGradRows; ++bit) {
        const int row = grad_row + bit * 8 + lane / 4;
        if (row >= begin && row < limit) covered |= 1u << bit;
      }
    }
    if constexpr (Shape::kStages == 1) {
      __syncthreads();
      if (walk.valid) LoadQueries<Shape>(b, w, walk, first_head, stage, thread);
      CommitCopies();
    }
  }
  __syncthreads();
  if (signal != nullptr && thread == 0) CountContribution(signal);

  StoreKeyGradient(dk, b.dk, b.dk_stride, int64_t{keys.kv_begin} + grad_row, kv_head * p.head_dim,
                   grad_col, p.head_dim, p.scale, b.mode, covered, lane);
  StoreKeyGradient(dv, b.dv, b.dv_stride, int64_t{keys.kv_begin} + grad_row, kv_head * p.value_dim,
                   grad_col, p.value_dim, 1.0f, b.mode, covered, lane);
}

template <int kDim>
cudaError_t Launch(const SoftmaxBackwardParams& params, cudaStream_t stream) {
  using Shape = BackwardShape<kDim>;
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
  const auto query_blocks = static_cast<unsigned>(p.plan.num_query_tiles * p.num_heads);
  if (p.plan.num_key_tiles > 0) {
    const auto kernel = SoftmaxBackwardKernel<Shape>;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 Shape::kSharedBytes);
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(p.plan.num_key_tiles * p.num_kv_heads);
    kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params, w);
  }
  RoundDqKernel<Shape><<<query_blocks, Shape::kThreads, 0, stream>>>(params, w.dq);
  return cudaGetLastError();
}

}  // namespace

SoftmaxBackwardWorkspace LayOutSoftmaxBackward(void* base, int64_t query_tiles, int queries,
                                               int num_heads, int padded_dim, size_t* bytes) {
  const int64_t rows = query_tiles * queries * num_heads;
  const int64_t row_bytes = RoundUp(rows * 4, 256);
  auto* at = static_cast<char*>(base);
  SoftmaxBackwardWorkspace w;
  w.dq = reinterpret_cast<float*>(at);
  at += rows * padded_dim * 4;
  w.lse = reinterpret_cast<float*>(at);
  at += row_bytes;
  w.delta = reinterpret_cast<float*>(at);
  at += row_bytes;
  w.counters = reinterpret_cast<uint32_t*>(at);
  w.num_counters = 1 + 2 * query_tiles * num_heads;
  at += RoundUp(w.num_counters * 4, 256);
  *bytes = at - static_cast<char*>(base);
  return w;
}

cudaError_t LaunchSoftmaxBackwardStatistics(const SoftmaxBackwardParams& params,
                                            const SoftmaxBackwardWorkspace& w,
                                            cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(w.counters, 0, w.num_counters * 4, stream);
  if (error != cudaSuccess) return error;
  const SoftmaxAttentionPlanView& plan = params.forward.plan;
  const auto blocks = static_cast<unsigned>(plan.num_query_tiles * params.forward.num_heads);
  RowStatisticsKernel<<<blocks, 256, 0, stream>>>(params, w.lse, w.delta,
                                                  plan.tiling.backward_queries);
  return cudaGetLastError();
}

size_t SoftmaxBackwardWorkspaceBytes(const SoftmaxAttentionPlan& plan, int num_heads, int head_dim,
                                     int value_dim) {
  size_t bytes = 0;
  LayOutSoftmaxBackward(nullptr, plan.num_query_tiles, plan.tiling.backward_queries, num_heads,
                        PaddedDim(head_dim, value_dim), &bytes);
  return bytes;
}

cudaError_t LaunchSoftmaxBackward(const SoftmaxBackwardParams& params, cudaStream_t stream) {
  const SoftmaxForwardParams& p = params.forward;
  const int dim = std::max(p.head_dim, p.value_dim);
  if (std::min(p.head_dim, p.value_dim) < 8 || dim > 256 || p.head_dim % 8 != 0 ||
      p.value_dim % 8 != 0 || p.num_kv_heads < 1 || p.num_heads % p.num_kv_heads != 0 ||
      p.q_stride % 8 != 0 || p.k_stride % 8 != 0 || p.v_stride % 8 != 0 || p.out_stride % 8 != 0 ||
      params.dout_stride % 8 != 0 || params.dq_stride % 8 != 0 || params.dk_stride % 8 != 0 ||
      params.dv_stride % 8 != 0 || p.plan.num_query_tiles * p.num_heads > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  if (p.plan.num_query_tiles == 0) return cudaSuccess;
  if (!p.portable) {
    int device = 0, major = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (error != cudaSuccess) return error;
    if (major == 9) return LaunchSoftmaxBackwardSm90(params, stream);
  }
  if (dim <= 64) return Launch<64>(params, stream);
  if (dim <= 128) return Launch<128>(params, stream);
  return Launch<256>(params, stream);
}

}  // namespace evenkeel
