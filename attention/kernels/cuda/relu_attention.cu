// One block takes one task and head, or backward a group of tasks that share keys, 64 queries by 64
// keys at a time. Without a denominator a weight depends on its own score alone, so nothing is
// carried from key to key but sums.
//
// Forward, a warp a strip of 16 queries:  S = Q K^T;  P = relu(scale S);  O += P V.
// Backward, P and dS = scale (S > 0) (dO V^T) go through shared memory:
//   dV += P^T dO;  dK += dS^T Q  for every block of keys,  dQ += dS K  for every block of queries.
// A task of one block, the usual case, computes its scores once; a longer one, and one that shares
// keys with others, computes them again for dQ, which costs two products of five more but needs no
// sums across blocks in memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/kernels/cuda/relu_attention_cuda.h"
#include "attention/kernels/cuda/tile_product.cuh"

namespace evenkeel {
namespace {

constexpr int kTile = 64;  // queries or keys

template <int kDim>
struct ReluShape {
  static constexpr int kForwardThreads = 128;
  static constexpr int kForwardBlocks = kDim == 64 ? 4 : kDim == 128 ? 3 : 2;  // a multiprocessor
  static constexpr int kBackwardThreads = 256;
  static constexpr int kBackwardBlocks = kDim == 256 ? 1 : 2;
  static constexpr int kTileBytes = kTile * kDim * 2;
  static constexpr int kWeightBytes = kTile * kTile * 2;
  static constexpr int kForwardBytes = 3 * kTileBytes;                      // q, k, v
  static constexpr int kBackwardBytes = 4 * kTileBytes + 2 * kWeightBytes;  // and dout; p, ds
};

// Rows of one head of a tensor.
struct HeadRows {
  Bf16* data;
  int64_t stride;

  __device__ __forceinline__ HeadRows(const void* tensor, int64_t row_stride, int64_t first_row,
                                      int first_column)
      : data(static_cast<Bf16*>(const_cast<void*>(tensor)) + first_row * row_stride + first_column),
        stride(row_stride) {}
};

// DiagonalOffset for the device. The keys past a task's end, which it no longer hides, are zero in
// the tiles and weigh nothing.
__device__ __forceinline__ int OffsetOf(const AttentionTask& task) {
  const int64_t ahead = task.q_ahead < task.q_len ? task.q_ahead : task.q_len;
  return static_cast<int>(task.kv_len - task.q_len + ahead);
}

// The first `count` of `rows`, 64 at most, into a tile; the rest of the tile becomes zero.
template <int kDim, int kThreads>
__device__ __forceinline__ void LoadRows(uint32_t tile, const HeadRows& rows, int count, int dim) {
  LoadTile<kTile, kDim, kThreads>(tile, rows.data, rows.stride, count, dim / 8,
                                  static_cast<int>(threadIdx.x));
}

// Rounds the block's sums and carries them through a tile to whole-row stores at the first `count`
// of `rows`, 64 at most. A warp holds 16 rows from warp_row on, 8 kN columns from warp_col on.
template <int kThreads, int kN>
__device__ __forceinline__ void StoreRows(const float (&acc)[1][kN][4], int warp_row, int warp_col,
                                          uint32_t tile, const HeadRows& rows, int count, int dim) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();  // the tile has been read
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      StoreShared4(tile + ElementOffset<kTile>(warp_row + half * 8 + lane / 4,
                                               warp_col + n * 8 + (lane % 4) * 2),
                   PackBf16(acc[0][n][half * 2], acc[0][n][half * 2 + 1]));
    }
  }
  __syncthreads();
  const int chunks = dim / 8, valid = count < kTile ? count : kTile;
  for (int i = static_cast<int>(threadIdx.x); i < valid * chunks; i += kThreads) {
    const int row = i / chunks, chunk = i % chunks;
    *reinterpret_cast<uint4*>(rows.data + row * rows.stride + chunk * 8) =
        LoadShared16(tile + ElementOffset<kTile>(row, chunk * 8));
  }
}

template <int kDim>
__global__ void __launch_bounds__(ReluShape<kDim>::kForwardThreads, ReluShape<kDim>::kForwardBlocks)
    ReluForwardKernel(const __grid_constant__ ReluAttentionForwardParams p) {
  using Shape = ReluShape<kDim>;
  constexpr int kThreads = Shape::kForwardThreads, kKeyTiles = kTile / 8, kDimTiles = kDim / 8;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t q_tile = SharedAddress(shared);
  const uint32_t k_tile = q_tile + Shape::kTileBytes, v_tile = k_tile + Shape::kTileBytes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const uint32_t rows_first = LaneOffset(lane, true), cols_first = LaneOffset(lane, false);

  const AttentionTask& task = p.tasks[blockIdx.x / p.num_heads];
  const int head = static_cast<int>(blockIdx.x) % p.num_heads;
  const auto num_queries = static_cast<int>(task.q_len), num_keys = static_cast<int>(task.kv_len);
  const int offset = OffsetOf(task);
  const int qk_col = head * p.head_dim, v_col = head * p.value_dim;

  for (int q_first = 0; q_first < num_queries; q_first += kTile) {
    __syncthreads();  // the output before this one has been read
    LoadRows<kDim, kThreads>(q_tile, HeadRows(p.q, p.q_stride, task.q_begin + q_first, qk_col),
                             num_queries - q_first, p.head_dim);
    // Query i sees the keys up to i + offset; the block's last one sees the most.
    const int last = q_first + kTile < num_queries ? q_first + kTile : num_queries;
    const int seen = min(last + offset, num_keys);
    float o[1][kDimTiles][4] = {};
    for (int k_first = 0; k_first < seen; k_first += kTile) {
      if (k_first > 0) __syncthreads();  // the keys before these have been read
      LoadRows<kDim, kThreads>(k_tile, HeadRows(p.k, p.k_stride, task.kv_begin + k_first, qk_col),
                               seen - k_first, p.head_dim);
      LoadRows<kDim, kThreads>(v_tile, HeadRows(p.v, p.v_stride, task.kv_begin + k_first, v_col),
                               seen - k_first, p.value_dim);
      CommitCopies();
      WaitForCopies<0>();
      __syncthreads();
      float s[1][kKeyTiles][4] = {};
      AddProductNT<kTile, kTile, kDim>(s, PartAt<kTile>(q_tile, rows_first, warp_row, 0),
                                       PartAt<kTile>(k_tile, cols_first, 0, 0));
      const int visible = q_first + offset - k_first + warp_row + lane / 4;  // last key of row 0
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = n * 8 + (lane % 4) * 2 + (e & 1);
          const float x = p.scale * s[0][n][e];
          s[0][n][e] = key > visible + (e >> 1) * 8 || x <= 0.0f ? 0.0f : x;  // keeps NaN
        }
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t a[4];
        AccumulatorsAsOperand(a, s[0][n], s[0][n + 1]);
#pragma unroll
        for (int d = 0; d < kDimTiles; d += 2) {
          uint32_t b[4];
          LoadMatricesTransposed(b, BlockAddress<kTile>(v_tile, rows_first, n * 8, d * 8));
          MmaPair(o[0][d], o[0][d + 1], a, b);
        }
      }
    }
    if (seen <= 0) {  // nothing has waited for the queries, whose tile is written now
      CommitCopies();
      WaitForCopies<0>();
    }
    StoreRows<kThreads>(o, warp_row, 0, q_tile,
                        HeadRows(p.out, p.out_stride, task.q_begin + q_first, v_col),
                        num_queries - q_first, p.value_dim);
  }
}

// Shared memory of the backward pass, and the warp's part of every product.
template <int kDim>
struct BackwardTiles {
  uint32_t q, k, v, dout, p, ds;
  uint32_t rows_first, cols_first;
  int lane, row, weight_col, dim_col;  // 16 rows; 32 columns of weights; half of the dims

  __device__ __forceinline__ explicit BackwardTiles(const void* shared) {
    q = SharedAddress(shared);
    k = q + ReluShape<kDim>::kTileBytes;
    v = k + ReluShape<kDim>::kTileBytes;
    dout = v + ReluShape<kDim>::kTileBytes;
    p = dout + ReluShape<kDim>::kTileBytes;
    ds = p + ReluShape<kDim>::kWeightBytes;
    lane = static_cast<int>(threadIdx.x) % 32;
    rows_first = LaneOffset(lane, true);
    cols_first = LaneOffset(lane, false);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp % 4 * 16;
    weight_col = warp / 4 * 32;
    dim_col = warp / 4 * (kDim / 2);
  }

  // P and dS of the tiles' queries and keys; query 0 sees the keys up to `visible`, and none sees
  // those before `low` and from `high` on. Complete after the next barrier.
  __device__ __forceinline__ void Weigh(float scale, int visible, int low, int high) const {
    float s[1][4][4] = {}, dp[1][4][4] = {};
    AddProductNT<kTile, kTile, kDim>(s, PartAt<kTile>(q, rows_first, row, 0),
                                     PartAt<kTile>(k, cols_first, weight_col, 0));
    AddProductNT<kTile, kTile, kDim>(dp, PartAt<kTile>(dout, rows_first, row, 0),
                                     PartAt<kTile>(v, cols_first, weight_col, 0));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = row + half * 8 + lane / 4, key = weight_col + n * 8 + (lane % 4) * 2;
        float weight[2], gradient[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = scale * s[0][n][half * 2 + e];
          const bool hidden = key + e > query + visible || key + e < low || key + e >= high;
          const bool off = hidden || x <= 0.0f;  // NaN is on
          weight[e] = off ? 0.0f : x;
          gradient[e] = off ? 0.0f : scale * dp[0][n][half * 2 + e];
        }
        const uint32_t place = ElementOffset<kTile>(query, key);
        StoreShared4(p + place, PackBf16(weight[0], weight[1]));
        StoreShared4(ds + place, PackBf16(gradient[0], gradient[1]));
      }
    }
  }

  // acc += A^T B: A is p or ds, B is dout or q.
  __device__ __forceinline__ void AddTransposed(float (&acc)[1][kDim / 16][4], uint32_t weights,
                                                uint32_t operand) const {
    AddProductTN<kTile, kTile, kTile>(acc, PartAt<kTile>(weights, cols_first, 0, row),
                                      PartAt<kTile>(operand, rows_first, 0, dim_col));
  }
  // acc += dS K
  __device__ __forceinline__ void AddQueryGradient(float (&acc)[1][kDim / 16][4]) const {
    AddProductNN<kTile, kTile, kTile>(acc, PartAt<kTile>(ds, rows_first, row, 0),
                                      PartAt<kTile>(k, rows_first, 0, dim_col));
  }
};

template <int kDim>
__global__ void __launch_bounds__(ReluShape<kDim>::kBackwardThreads,
                                  ReluShape<kDim>::kBackwardBlocks)
    ReluBackwardKernel(const __grid_constant__ ReluAttentionBackwardParams b) {
  constexpr int kThreads = ReluShape<kDim>::kBackwardThreads, kN = kDim / 16;
  extern __shared__ __align__(1024) uint8_t shared[];
  const BackwardTiles<kDim> tiles(shared);
  const ReluAttentionForwardParams& p = b.forward;

  const ReluTaskGroup group = b.groups[blockIdx.x / p.num_heads];
  const AttentionTask* const tasks = p.tasks + group.first_task;
  const int head = static_cast<int>(blockIdx.x) % p.num_heads;
  const int qk_col = head * p.head_dim, v_col = head * p.value_dim;
  const auto load_queries = [&](const AttentionTask& task, int first) {
    const int64_t row = task.q_begin + first;
    const int count = static_cast<int>(task.q_len) - first;
    LoadRows<kDim, kThreads>(tiles.q, HeadRows(p.q, p.q_stride, row, qk_col), count, p.head_dim);
    LoadRows<kDim, kThreads>(tiles.dout, HeadRows(b.dout, b.dout_stride, row, v_col), count,
                             p.value_dim);
  };
  const auto load_keys = [&](int64_t row, int count) {
    LoadRows<kDim, kThreads>(tiles.k, HeadRows(p.k, p.k_stride, row, qk_col), count, p.head_dim);
    LoadRows<kDim, kThreads>(tiles.v, HeadRows(p.v, p.v_stride, row, v_col), count, p.value_dim);
  };
  const auto store_dq = [&](const float(&sum)[1][kN][4], uint32_t tile, const AttentionTask& task,
                            int first) {
    StoreRows<kThreads>(sum, tiles.row, tiles.dim_col, tile,
                        HeadRows(b.dq, b.dq_stride, task.q_begin + first, qk_col),
                        static_cast<int>(task.q_len) - first, p.head_dim);
  };
  // Once the copies are there: P and dS of these queries and the keys of the tiles, of which the
  // task's first is `begin`, which may lie before them.
  const auto weigh = [&](const AttentionTask& task, int q_first, int begin) {
    CommitCopies();
    WaitForCopies<0>();
    __syncthreads();
    tiles.Weigh(p.scale, q_first + OffsetOf(task) + begin, begin,
                begin + static_cast<int>(task.kv_len));
    __syncthreads();
  };
  const auto num_keys = static_cast<int>(group.kv_len);
  const bool single =
      group.num_tasks == 1 && tasks[0].q_len <= kTile && num_keys <= kTile && num_keys > 0;

  for (int k_first = 0; k_first < num_keys; k_first += kTile) {
    __syncthreads();  // the gradients before these have been read
    load_keys(group.kv_begin + k_first, num_keys - k_first);
    float dk_sum[1][kN][4] = {}, dv_sum[1][kN][4] = {};
    bool loaded = false;
    for (int64_t t = 0; t < group.num_tasks; ++t) {
      const AttentionTask task = tasks[t];
      const auto num_queries = static_cast<int>(task.q_len);
      const auto begin = static_cast<int>(task.kv_begin - group.kv_begin) - k_first;
      if (begin >= kTile || begin + task.kv_len <= 0) continue;
      // Query i sees the task's keys up to i + offset.
      const int first_query = max(0, max(0, -begin) - OffsetOf(task));
      for (int q_first = first_query / kTile * kTile; q_first < num_queries; q_first += kTile) {
        if (loaded) __syncthreads();  // the queries before these have been read
        loaded = true;
        load_queries(task, q_first);
        weigh(task, q_first, begin);
        if (single) {
          float dq_sum[1][kN][4] = {};
          tiles.AddQueryGradient(dq_sum);
          store_dq(dq_sum, tiles.v, task, 0);
        }
        tiles.AddTransposed(dk_sum, tiles.ds, tiles.q);
        tiles.AddTransposed(dv_sum, tiles.p, tiles.dout);
      }
    }
    if (!loaded) {  // nobody sees these keys; their copies land before the next ones start
      CommitCopies();
      WaitForCopies<0>();
    }
    StoreRows<kThreads>(dk_sum, tiles.row, tiles.dim_col, tiles.q,
                        HeadRows(b.dk, b.dk_stride, group.kv_begin + k_first, qk_col),
                        num_keys - k_first, p.head_dim);
    StoreRows<kThreads>(dv_sum, tiles.row, tiles.dim_col, tiles.dout,
                        HeadRows(b.dv, b.dv_stride, group.kv_begin + k_first, v_col),
                        num_keys - k_first, p.value_dim);
  }
  if (single) return;

  for (int64_t t = 0; t < group.num_tasks; ++t) {
    const AttentionTask task = tasks[t];
    const auto num_queries = static_cast<int>(task.q_len);
    const auto task_keys = static_cast<int>(task.kv_len);
    for (int q_first = 0; q_first < num_queries; q_first += kTile) {
      __syncthreads();  // the gradients before these have been read
      load_queries(task, q_first);
      float dq_sum[1][kN][4] = {};
      const int seen = min(min(q_first + kTile, num_queries) + OffsetOf(task), task_keys);
      for (int k_first = 0; k_first < seen; k_first += kTile) {
        if (k_first > 0) __syncthreads();  // the keys before these have been read
        load_keys(task.kv_begin + k_first, task_keys - k_first);
        weigh(task, q_first, -k_first);
        tiles.AddQueryGradient(dq_sum);
      }
      if (seen <= 0) {  // as in the forward pass
        CommitCopies();
        WaitForCopies<0>();
      }
      store_dq(dq_sum, tiles.q, task, q_first);
    }
  }
}

bool IsValid(const ReluAttentionForwardParams& p) {
  const int low = std::min(p.head_dim, p.value_dim), high = std::max(p.head_dim, p.value_dim);
  return low >= 8 && high <= 256 && p.head_dim % 8 == 0 && p.value_dim % 8 == 0 &&
         p.num_heads >= 1 && p.num_tasks >= 0 && p.num_tasks <= INT32_MAX / p.num_heads &&
         p.q_stride % 8 == 0 && p.k_stride % 8 == 0 && p.v_stride % 8 == 0 && p.out_stride % 8 == 0;
}

template <typename Params>
cudaError_t Launch(void (*kernel)(Params), const Params& params, int64_t blocks, int threads,
                   int shared_bytes, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(shared_bytes), stream>>>(params);
  return cudaGetLastError();
}

// Calls run.operator()<kDim>() for the smallest tile width that holds the head.
template <typename Run>
cudaError_t DispatchDim(const ReluAttentionForwardParams& p, const Run& run) {
  const int dim = std::max(p.head_dim, p.value_dim);
  if (dim <= 64) return run.template operator()<64>();
  if (dim <= 128) return run.template operator()<128>();
  return run.template operator()<256>();
}

}  // namespace

cudaError_t LaunchReluAttentionForward(const ReluAttentionForwardParams& params,
                                       cudaStream_t stream) {
  if (!IsValid(params)) return cudaErrorInvalidValue;
  if (params.num_tasks == 0) return cudaSuccess;
  return DispatchDim(params, [&]<int kDim>() {
    using Shape = ReluShape<kDim>;
    return Launch<ReluAttentionForwardParams>(ReluForwardKernel<kDim>, params,
                                              params.num_tasks * params.num_heads,
                                              Shape::kForwardThreads, Shape::kForwardBytes, stream);
  });
}

cudaError_t LaunchReluAttentionBackward(const ReluAttentionBackwardParams& params,
                                        cudaStream_t stream) {
  const ReluAttentionForwardParams& p = params.forward;
  if (!IsValid(p) || params.dout_stride % 8 != 0 || params.dq_stride % 8 != 0 ||
      params.dk_stride % 8 != 0 || params.dv_stride % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  if (params.num_groups == 0) return cudaSuccess;
  return DispatchDim(p, [&]<int kDim>() {
    using Shape = ReluShape<kDim>;
    return Launch<ReluAttentionBackwardParams>(
        ReluBackwardKernel<kDim>, params, params.num_groups * p.num_heads, Shape::kBackwardThreads,
        Shape::kBackwardBytes, stream);
  });
}

}  // namespace evenkeel
