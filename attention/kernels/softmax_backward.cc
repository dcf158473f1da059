#include "attention/kernels/softmax_backward.h"

#include <algorithm>
#include <limits>
#include <thread>

#include "attention/kernels/softmax_tile.h"

namespace evenkeel {
namespace {

constexpr int64_t kBlockKeys = 64;
constexpr double kLog2E = 1.4426950408889634074;

// Queries of a tile: two runs of accumulators wide.
template <typename T>
constexpr int64_t kTile = 2 * kTileVecs* simd::kLanes<T>;

// Scratch of a column. Dp and Ep are D and E padded to whole vectors.
template <typename T>
struct ColumnScratch {
  T* keys;        // [column keys, Dp]
  T* values;      // [column keys, Ep]
  T* dk;          // like keys
  T* dv;          // like values
  T* q;           // [kTile, Dp]
  T* q_lanes;     // [Dp, kTile], times scale (and log2 e for softmax)
  T* dout;        // [kTile, Ep]
  T* dout_lanes;  // [Ep, kTile]
  T* dq;          // [kTile, Dp]
  T* weights;     // P^T [kBlockKeys, kTile]
  T* dscores;     // dS^T [kBlockKeys, kTile]
  T* lse;         // [kTile]
  T* delta;       // [kTile]

  // Lays the parts out from `p` on and returns their number of elements.
  int64_t Place(T* p, int64_t column_keys, int64_t key_stride, int64_t value_stride) {
    T* const begin = p;
    const auto take = [&](int64_t elements) { return std::exchange(p, p + elements); };
    keys = take(column_keys * key_stride);
    values = take(column_keys * value_stride);
    dk = take(column_keys * key_stride);
    dv = take(column_keys * value_stride);
    q = take(kTile<T> * key_stride);
    q_lanes = take(kTile<T> * key_stride);
    dout = take(kTile<T> * value_stride);
    dout_lanes = take(kTile<T> * value_stride);
    dq = take(kTile<T> * key_stride);
    weights = take(kBlockKeys * kTile<T>);
    dscores = take(kBlockKeys * kTile<T>);
    lse = take(kTile<T>);
    delta = take(kTile<T>);
    return p - begin;
  }
};

// A block of a column's keys and what it adds to, with the sizes the products need.
template <typename T>
struct ColumnBlock {
  const T* keys;
  const T* values;
  T* dk;
  T* dv;
  int64_t num_keys;
  int64_t head_size;
  int64_t value_size;
  int64_t key_stride;
  int64_t value_stride;
};

// Computes P^T and dS^T for kVecs vectors of queries from `lane` on. Query i of the tile sees the
// keys below `visible` + i. What pads num_keys to whole tiles of rows is not masked where all
// queries see the keys before it: its sums go to rows of padding, which nobody reads.
template <Weighting kWeighting, typename T, int kVecs>
void ComputeWeights(const ColumnBlock<T>& block, int64_t num_keys, int64_t visible, int64_t lane,
                    T scale, const ColumnScratch<T>& scratch) {
  using V = simd::Vec<T>;
  constexpr int kLanes = simd::kLanes<T>;
  for (int64_t k = 0; k < num_keys; k += kTileRows) {
    V p[kTileRows][kVecs] = {};
    MultiplyTile<true, T, kVecs>(block.head_size, block.keys + k * block.key_stride,
                                 block.key_stride, scratch.q_lanes + lane, kTile<T>, p);
    if constexpr (kWeighting == Weighting::kSoftmax) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const V lse = simd::Load<T>(scratch.lse + lane + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) p[r][v] -= lse;
      }
    }
    if (k + kTileRows > visible + lane) MaskTile<T, kVecs>(k, visible + lane, p);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        if constexpr (kWeighting == Weighting::kSoftmax) {
          p[r][v] = Exp2(p[r][v]);
        } else {
          p[r][v] = p[r][v] < T{0} ? V{} : p[r][v];
        }
      }
    }
    StoreTile<T, kVecs>(p, scratch.weights + k * kTile<T> + lane, kTile<T>);

    V ds[kTileRows][kVecs] = {};
    MultiplyTile<true, T, kVecs>(block.value_size, block.values + k * block.value_stride,
                                 block.value_stride, scratch.dout_lanes + lane, kTile<T>, ds);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const V delta = simd::Load<T>(scratch.delta + lane + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const V weight = simd::Load<T>(scratch.weights + (k + r) * kTile<T> + lane + v * kLanes);
        if constexpr (kWeighting == Weighting::kSoftmax) {
          ds[r][v] = weight * (ds[r][v] * scale - delta);
        } else {
          // NaN weights fail the comparison the other way round, and stay visible.
          ds[r][v] = weight == T{0} ? V{} : ds[r][v] * scale + (weight - weight);
        }
      }
    }
    StoreTile<T, kVecs>(ds, scratch.dscores + k * kTile<T> + lane, kTile<T>);
  }
}

// Folds one block of keys and one tile of queries into dk, dv and scratch.dq.
template <Weighting kWeighting, typename T>
void FoldBlock(const ColumnBlock<T>& block, int64_t visible, int64_t num_queries, T scale,
               const ColumnScratch<T>& scratch) {
  constexpr int64_t kWidth = kTileVecs * simd::kLanes<T>;
  const int64_t num_keys = std::min(block.num_keys, visible + num_queries - 1);
  for (int64_t lane = 0; lane < num_queries; lane += kWidth) {
    const int64_t last = std::min(lane + kWidth, num_queries) - 1;
    const int64_t seen = std::min(num_keys, visible + last);
    if (num_queries - lane <= simd::kLanes<T> && simd::kLanes<T> >= kTileRows) {
      ComputeWeights<kWeighting, T, 1>(block, seen, visible, lane, scale, scratch);
    } else {
      ComputeWeights<kWeighting, T, kTileVecs>(block, seen, visible, lane, scale, scratch);
    }
  }
  // The first query that sees key k is k - visible + 1: those before it are left out.
  const auto accumulate = [&](const T* weights, const T* rows, int64_t stride, T* sums) {
    ForEachColumnTile<T>(stride, [&]<int kVecs>(int64_t column) {
      for (int64_t k = 0; k < num_keys; k += kTileRows) {
        const int64_t first = std::max<int64_t>(0, k - visible + 1);
        AccumulateTile<true, T, kVecs>(num_queries - first, weights + k * kTile<T> + first,
                                       kTile<T>, rows + first * stride + column, stride, nullptr,
                                       sums + k * stride + column, stride);
      }
    });
  };
  accumulate(scratch.weights, scratch.dout, block.value_stride, block.dv);
  accumulate(scratch.dscores, scratch.q, block.key_stride, block.dk);
  ForEachColumnTile<T>(block.key_stride, [&]<int kVecs>(int64_t column) {
    for (int64_t r = 0; r < num_queries; r += kTileRows) {
      const int64_t last = std::min<int64_t>(r + kTileRows, num_queries) - 1;
      const int64_t depth = std::clamp<int64_t>(visible + last, 0, num_keys);
      AccumulateTile<false, T, kVecs>(depth, scratch.dscores + r, kTile<T>, block.keys + column,
                                      block.key_stride, nullptr,
                                      scratch.dq + r * block.key_stride + column, block.key_stride);
    }
  });
}

void WaitUntil(const std::atomic<int64_t>& done, int64_t count) {
  for (int spins = 0; done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins > 200) std::this_thread::yield();
  }
}

// to[r, c] += from[r, c]
template <typename T>
void AddRows(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
             int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[r * to_stride + c] += from[r * from_stride + c];
  }
}

}  // namespace

template <typename T>
int64_t SoftmaxBackwardColumnKeys(const SoftmaxBackwardParams<T>& params, int64_t kv_len) {
  // Keys, values and their gradients stay in a core's cache; short tasks still have a few columns.
  constexpr int64_t kBytes = 400 * 1024, kMostKeys = 512;
  const int64_t key_bytes =
      2 * static_cast<int64_t>(sizeof(T)) *
      (PaddedToLanes<T>(params.head_size) + PaddedToLanes<T>(params.value_size));
  const int64_t most = std::clamp<int64_t>(kBytes / key_bytes, kBlockKeys, kMostKeys);
  return std::clamp<int64_t>(kv_len / 4, std::min<int64_t>(128, most), most) / kBlockKeys *
         kBlockKeys;
}

template <typename T>
int64_t SoftmaxBackwardScratch(const SoftmaxBackwardParams<T>& params, int64_t column_keys) {
  return ColumnScratch<T>().Place(nullptr, column_keys, PaddedToLanes<T>(params.head_size),
                                  PaddedToLanes<T>(params.value_size));
}

template <Weighting kWeighting, typename T>
void SoftmaxBackward(const SoftmaxBackwardParams<T>& params, const SoftmaxBackwardColumn<T>& column,
                     T* scratch_data) {
  constexpr bool kIsSoftmax = kWeighting == Weighting::kSoftmax;
  const AttentionTask& task = column.task;
  const int64_t key_stride = PaddedToLanes<T>(params.head_size);
  const int64_t value_stride = PaddedToLanes<T>(params.value_size);
  const int64_t padded_keys = PaddedToRows(column.key_count);
  const T scale = static_cast<T>(params.scale);
  const T q_factor = static_cast<T>(params.scale * (kIsSoftmax ? kLog2E : 1));
  ColumnScratch<T> scratch;
  scratch.Place(scratch_data, padded_keys, key_stride, value_stride);

  const int64_t kv_row = task.kv_begin + column.key_first;
  PackRows<T>(params.k.at(kv_row, column.kv_head), params.k.row_stride, column.key_count,
              params.head_size, padded_keys, scratch.keys, key_stride);
  PackRows<T>(params.v.at(kv_row, column.kv_head), params.v.row_stride, column.key_count,
              params.value_size, padded_keys, scratch.values, value_stride);
  std::fill_n(scratch.dk, padded_keys * key_stride, T{0});
  std::fill_n(scratch.dv, padded_keys * value_stride, T{0});
  std::fill_n(scratch.delta, kTile<T>, T{0});

  // Query i of the task sees the column's keys below i + 1 + offset.
  const int64_t offset = DiagonalOffset(task) - column.key_first;
  const int64_t num_tiles = (task.q_len + kTile<T> - 1) / kTile<T>;
  const int64_t first_tile = std::max<int64_t>(0, -offset) / kTile<T>;
  for (int64_t h = 0; h < params.group; ++h) {
    const int64_t head = column.kv_head * params.group + h;
    for (int64_t t = first_tile; t < num_tiles; ++t) {
      const int64_t query = t * kTile<T>;
      const int64_t q_row = task.q_begin + query;
      const int64_t num_queries = std::min(kTile<T>, task.q_len - query);
      PackRows<T>(params.q.at(q_row, head), params.q.row_stride, num_queries, params.head_size,
                  num_queries, scratch.q, key_stride);
      PackRows<T>(params.dout.at(q_row, head), params.dout.row_stride, num_queries,
                  params.value_size, num_queries, scratch.dout, value_stride);
      PackTransposed<T>(scratch.q, key_stride, num_queries, key_stride, q_factor, kTile<T>,
                        scratch.q_lanes, kTile<T>);
      PackTransposed<T>(scratch.dout, value_stride, num_queries, value_stride, T{1}, kTile<T>,
                        scratch.dout_lanes, kTile<T>);
      if constexpr (kIsSoftmax) {
        std::copy_n(column.lse + h * task.q_len + query, num_queries, scratch.lse);
        std::copy_n(column.delta + h * task.q_len + query, num_queries, scratch.delta);
        // Lanes without a query: weight 0.
        std::fill(scratch.lse + num_queries, scratch.lse + kTile<T>,
                  std::numeric_limits<T>::infinity());
      }
      std::fill_n(scratch.dq, kTile<T> * key_stride, T{0});

      const int64_t visible = query + 1 + offset;
      for (int64_t k = 0; k < std::min(column.key_count, visible + num_queries - 1);
           k += kBlockKeys) {
        ColumnBlock<T> block;
        block.keys = scratch.keys + k * key_stride;
        block.values = scratch.values + k * value_stride;
        block.dk = scratch.dk + k * key_stride;
        block.dv = scratch.dv + k * value_stride;
        block.num_keys = std::min(kBlockKeys, column.key_count - k);
        block.head_size = params.head_size;
        block.value_size = params.value_size;
        block.key_stride = key_stride;
        block.value_stride = value_stride;
        FoldBlock<kWeighting, T>(block, visible - k, num_queries, scale, scratch);
      }

      const int64_t finished = h * num_tiles + t + 1;
      if (column.previous_done != nullptr) WaitUntil(*column.previous_done, finished);
      AddRows<T>(scratch.dq, key_stride, num_queries, params.head_size, params.dq.at(q_row, head),
                 params.dq.row_stride);
      column.done->store(finished, std::memory_order_release);
    }
  }
  AddRows<T>(scratch.dk, key_stride, column.key_count, params.head_size,
             params.dk.at(kv_row, column.kv_head), params.dk.row_stride);
  AddRows<T>(scratch.dv, value_stride, column.key_count, params.value_size,
             params.dv.at(kv_row, column.kv_head), params.dv.row_stride);
}

template int64_t SoftmaxBackwardColumnKeys(const SoftmaxBackwardParams<float>&, int64_t);
template int64_t SoftmaxBackwardColumnKeys(const SoftmaxBackwardParams<double>&, int64_t);
template int64_t SoftmaxBackwardScratch(const SoftmaxBackwardParams<float>&, int64_t);
template int64_t SoftmaxBackwardScratch(const SoftmaxBackwardParams<double>&, int64_t);
template void SoftmaxBackward<Weighting::kSoftmax>(const SoftmaxBackwardParams<float>&,
                                                   const SoftmaxBackwardColumn<float>&, float*);
template void SoftmaxBackward<Weighting::kSoftmax>(const SoftmaxBackwardParams<double>&,
                                                   const SoftmaxBackwardColumn<double>&, double*);
template void SoftmaxBackward<Weighting::kRelu>(const SoftmaxBackwardParams<float>&,
                                                const SoftmaxBackwardColumn<float>&, float*);
template void SoftmaxBackward<Weighting::kRelu>(const SoftmaxBackwardParams<double>&,
                                                const SoftmaxBackwardColumn<double>&, double*);

}  // namespace evenkeel
