#include "attention/kernels/softmax_forward.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kernels/softmax_tile.h"

namespace evenkeel {
namespace {

constexpr int64_t kBlockKeys = 128;
constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

template <typename T>
constexpr int64_t kTile = kTileVecs* simd::kLanes<T>;

// A block of keys and values, copied to dense rows: the rows of a packed projection are often a
// power of two apart and would share a few cache sets.
template <typename T>
struct KeyBlock {
  const T* keys;  // [kBlockKeys, key_stride], zero beyond num_keys
  const T* values;
  int64_t num_keys;
  int64_t head_size;
  int64_t key_stride;
  int64_t value_stride;
};

// What is kept of a tile of queries between blocks of keys.
template <typename T>
struct QueryTile {
  T* queries;  // [D, kTile], times scale (and log2 e for softmax)
  T* out;      // [kTile, Ep], not yet divided by sum
  T* max;      // [kTile], in units of log2
  T* sum;      // [kTile]

  static int64_t Elements(int64_t key_stride, int64_t value_stride) {
    return kTile<T> * (key_stride + value_stride + 2);
  }
  static QueryTile At(T* p, int64_t key_stride, int64_t value_stride) {
    QueryTile tile;
    tile.queries = p;
    tile.out = tile.queries + kTile<T> * key_stride;
    tile.max = tile.out + kTile<T> * value_stride;
    tile.sum = tile.max + kTile<T>;
    return tile;
  }
};

// Folds a block of keys into a tile of queries. Query i < num_queries sees the keys below
// min(`visible` + i, block.num_keys). `weights` is scratch [kBlockKeys, kTile].
template <Weighting kWeighting, typename T, int kVecs>
void FoldBlock(const KeyBlock<T>& block, int64_t visible, int64_t num_queries,
               const QueryTile<T>& tile, T* weights) {
  using V = simd::Vec<T>;
  constexpr int kLanes = simd::kLanes<T>;
  constexpr int64_t kWidth = kTile<T>;
  const T infinity = std::numeric_limits<T>::infinity();
  const int64_t num_keys = std::min(block.num_keys, visible + num_queries - 1);

  V block_max[kVecs];
  for (int v = 0; v < kVecs; ++v) block_max[v] = simd::Splat<T>(-infinity);
  for (int64_t k = 0; k < num_keys; k += kTileRows) {
    V acc[kTileRows][kVecs] = {};
    MultiplyTile<true, T, kVecs>(block.head_size, block.keys + k * block.key_stride,
                                 block.key_stride, tile.queries, kWidth, acc);
    if (k + kTileRows > visible) MaskTile<T, kVecs>(k, visible, acc);
    // Rows that pad the block are no keys; where all queries see the keys before them, no causal
    // mask says so.
    if (k + kTileRows > num_keys) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        if (k + r < num_keys) continue;
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r][v] = simd::Splat<T>(-infinity);
      }
    }
    if constexpr (kWeighting == Weighting::kRelu) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r][v] = acc[r][v] < T{0} ? V{} : acc[r][v];
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          // NaN scores may drop out of the maximum; they stay in their weights, and so in the sum.
          block_max[v] = simd::Max<T>(block_max[v], acc[r][v]);
        }
      }
    }
    StoreTile<T, kVecs>(acc, weights + k * kWidth, kWidth);
  }

  alignas(64) T factor[kWidth];
  if constexpr (kWeighting == Weighting::kSoftmax) {
    V reference[kVecs], block_sum[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      const V old_max = simd::Load<T>(tile.max + v * kLanes);
      const V new_max = simd::Max<T>(block_max[v], old_max);
      // A query that has seen no key yet has the maximum -infinity: any finite reference does.
      reference[v] = new_max == -infinity ? V{} : new_max;
      simd::Store<T>(tile.max + v * kLanes, new_max);
      simd::Store<T>(factor + v * kLanes, Exp2(old_max - reference[v]));
      block_sum[v] = V{};
    }
    for (int64_t k = 0; k < num_keys; ++k) {
      for (int v = 0; v < kVecs; ++v) {
        T* at = weights + k * kWidth + v * kLanes;
        const V weight = Exp2(simd::Load<T>(at) - reference[v]);
        block_sum[v] += weight;
        simd::Store<T>(at, weight);
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      const V old_sum = simd::Load<T>(tile.sum + v * kLanes);
      simd::Store<T>(tile.sum + v * kLanes,
                     old_sum * simd::Load<T>(factor + v * kLanes) + block_sum[v]);
    }
  }

  // Columns outside, rows inside: a column of the values stays in the first-level cache.
  ForEachColumnTile<T>(block.value_stride, [&]<int kColumnVecs>(int64_t column) {
    for (int64_t r = 0; r < num_queries; r += kTileRows) {
      const int64_t last = std::min<int64_t>(r + kTileRows, num_queries) - 1;
      const int64_t depth = std::clamp<int64_t>(visible + last, 0, num_keys);
      AccumulateTile<false, T, kColumnVecs>(
          depth, weights + r, kWidth, block.values + column, block.value_stride,
          kWeighting == Weighting::kSoftmax ? factor + r : nullptr,
          tile.out + r * block.value_stride + column, block.value_stride);
    }
  });
}

// Divides by the sums and writes a finished tile.
template <Weighting kWeighting, typename T>
void WriteTile(const SoftmaxForwardParams<T>& params, const QueryTile<T>& tile, int64_t row,
               int64_t head, int64_t num_queries, int64_t value_stride) {
  for (int64_t i = 0; i < num_queries; ++i) {
    const T* from = tile.out + i * value_stride;
    T* to = params.out.at(row + i, head);
    if constexpr (kWeighting == Weighting::kRelu) {
      std::copy(from, from + params.value_size, to);
    } else {
      const T sum = tile.sum[i];
      const T inverse = sum == 0 ? T{0} : 1 / sum;
      for (int64_t e = 0; e < params.value_size; ++e) to[e] = from[e] * inverse;
      *params.lse.at(row + i, head) = sum == 0 ? -std::numeric_limits<T>::infinity()
                                               : tile.max[i] * static_cast<T>(kLn2) + std::log(sum);
    }
  }
}

}  // namespace

template <typename T>
int64_t SoftmaxForwardTile() {
  return kTile<T>;
}

template <typename T>
int64_t SoftmaxForwardMaxTiles(const SoftmaxForwardParams<T>& params) {
  constexpr int64_t kBytes = 384 * 1024, kMostTiles = 16;
  const int64_t tile_bytes = QueryTile<T>::Elements(PaddedToLanes<T>(params.head_size),
                                                    PaddedToLanes<T>(params.value_size)) *
                             static_cast<int64_t>(sizeof(T));
  return std::clamp<int64_t>(kBytes / tile_bytes, 1, kMostTiles);
}

template <typename T>
int64_t SoftmaxForwardScratch(const SoftmaxForwardParams<T>& params, int64_t max_tiles) {
  const int64_t key_stride = PaddedToLanes<T>(params.head_size);
  const int64_t value_stride = PaddedToLanes<T>(params.value_size);
  return kBlockKeys * (key_stride + value_stride + kTile<T>)+max_tiles *
         QueryTile<T>::Elements(key_stride, value_stride);
}

template <Weighting kWeighting, typename T>
void SoftmaxForward(const SoftmaxForwardParams<T>& params, const SoftmaxForwardUnit& unit,
                    T* scratch) {
  const AttentionTask& task = unit.task;
  const int64_t key_stride = PaddedToLanes<T>(params.head_size);
  const int64_t value_stride = PaddedToLanes<T>(params.value_size);
  const int64_t kv_head = unit.head_first / params.group;
  const int64_t tiles_per_head = (unit.q_count + kTile<T> - 1) / kTile<T>;
  const T factor = static_cast<T>(params.scale * (kWeighting == Weighting::kRelu ? 1 : kLog2E));

  T* keys = scratch;
  T* values = keys + kBlockKeys * key_stride;
  T* weights = values + kBlockKeys * value_stride;
  T* tiles = weights + kBlockKeys * kTile<T>;
  const int64_t tile_elements = QueryTile<T>::Elements(key_stride, value_stride);
  const auto for_each_tile = [&](const auto& body) {
    for (int64_t i = 0; i < unit.head_count * tiles_per_head; ++i) {
      const int64_t head = unit.head_first + i / tiles_per_head;
      const int64_t query = unit.q_first + i % tiles_per_head * kTile<T>;  // within the task
      const int64_t num_queries = std::min(kTile<T>, unit.q_first + unit.q_count - query);
      body(QueryTile<T>::At(tiles + i * tile_elements, key_stride, value_stride), head, query,
           num_queries);
    }
  };

  for_each_tile([&](QueryTile<T> tile, int64_t head, int64_t query, int64_t num_queries) {
    PackTransposed<T>(params.q.at(task.q_begin + query, head), params.q.row_stride, num_queries,
                      params.head_size, factor, kTile<T>, tile.queries, kTile<T>);
    std::fill_n(tile.out, kTile<T> * value_stride, T{0});
    std::fill_n(tile.max, kTile<T>, -std::numeric_limits<T>::infinity());
    std::fill_n(tile.sum, kTile<T>, T{0});
  });

  // Query i of the task sees the keys below i + 1 + offset.
  const int64_t offset = DiagonalOffset(task);
  const int64_t end = std::min(unit.q_first + unit.q_count + offset, task.kv_len);
  for (int64_t first = 0; first < end; first += kBlockKeys) {
    KeyBlock<T> block;
    block.keys = keys;
    block.values = values;
    block.num_keys = std::min(kBlockKeys, end - first);
    block.head_size = params.head_size;
    block.key_stride = key_stride;
    block.value_stride = value_stride;
    PackRows<T>(params.k.at(task.kv_begin + first, kv_head), params.k.row_stride, block.num_keys,
                params.head_size, PaddedToRows(block.num_keys), keys, key_stride);
    PackRows<T>(params.v.at(task.kv_begin + first, kv_head), params.v.row_stride, block.num_keys,
                params.value_size, block.num_keys, values, value_stride);
    for_each_tile([&](const QueryTile<T>& tile, int64_t, int64_t query, int64_t num_queries) {
      const int64_t visible = query + 1 + offset - first;
      if (visible + num_queries - 1 <= 0) return;
      if (num_queries <= simd::kLanes<T> && simd::kLanes<T> >= kTileRows) {
        FoldBlock<kWeighting, T, 1>(block, visible, num_queries, tile, weights);
      } else {
        FoldBlock<kWeighting, T, kTileVecs>(block, visible, num_queries, tile, weights);
      }
    });
  }

  for_each_tile([&](const QueryTile<T>& tile, int64_t head, int64_t query, int64_t num_queries) {
    WriteTile<kWeighting, T>(params, tile, task.q_begin + query, head, num_queries, value_stride);
  });
}

template int64_t SoftmaxForwardTile<float>();
template int64_t SoftmaxForwardTile<double>();
template int64_t SoftmaxForwardMaxTiles(const SoftmaxForwardParams<float>&);
template int64_t SoftmaxForwardMaxTiles(const SoftmaxForwardParams<double>&);
template int64_t SoftmaxForwardScratch(const SoftmaxForwardParams<float>&, int64_t);
template int64_t SoftmaxForwardScratch(const SoftmaxForwardParams<double>&, int64_t);
template void SoftmaxForward<Weighting::kSoftmax>(const SoftmaxForwardParams<float>&,
                                                  const SoftmaxForwardUnit&, float*);
template void SoftmaxForward<Weighting::kSoftmax>(const SoftmaxForwardParams<double>&,
                                                  const SoftmaxForwardUnit&, double*);
template void SoftmaxForward<Weighting::kRelu>(const SoftmaxForwardParams<float>&,
                                               const SoftmaxForwardUnit&, float*);
template void SoftmaxForward<Weighting::kRelu>(const SoftmaxForwardParams<double>&,
                                               const SoftmaxForwardUnit&, double*);

}  // namespace evenkeel
