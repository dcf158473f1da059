#include "attention/kernels/softmax_few_queries.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kernels/softmax_tile.h"

namespace evenkeel {
namespace {

constexpr int64_t kBlockKeys = 32;  // a multiple of the lanes
constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// scores[k] = query . keys[k * stride, :] for k < num_keys, and -infinity from there to whole
// vectors. Returns the lane-wise maximum. `query` is zero from `size` to whole vectors.
template <typename T>
simd::Vec<T> Scores(const T* query, const T* keys, int64_t stride, int64_t size, int64_t num_keys,
                    T* scores) {
  constexpr int kLanes = simd::kLanes<T>;
  const T infinity = std::numeric_limits<T>::infinity();
  const int64_t whole = size / kLanes * kLanes;
  simd::Vec<T> max = simd::Splat<T>(-infinity);
  for (int64_t k = 0; k < num_keys; k += kLanes) {
    simd::Vec<T> sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const T* key = keys + std::min(k + i, num_keys - 1) * stride;
      simd::Vec<T> sum0 = {}, sum1 = {};
      int64_t d = 0;
      for (; d + 2 * kLanes <= size; d += 2 * kLanes) {
        sum0 += simd::Load<T>(query + d) * simd::Load<T>(key + d);
        sum1 += simd::Load<T>(query + d + kLanes) * simd::Load<T>(key + d + kLanes);
      }
      if (d < whole) sum0 += simd::Load<T>(query + d) * simd::Load<T>(key + d);
      if (whole < size) {
        T tail[kLanes] = {};
        for (int64_t e = whole; e < size; ++e) tail[e - whole] = key[e];
        sum1 += simd::Load<T>(query + whole) * simd::Load<T>(tail);
      }
      sums[i] = sum0 + sum1;
    }
    const auto hidden = LaneIndices<T>() >= static_cast<LaneOf<T>>(num_keys - k);
    simd::Vec<T> score = SumEach<T>(sums);
    score = hidden ? simd::Splat<T>(-infinity) : score;
    max = simd::Max<T>(max, score);
    simd::Store<T>(scores + k, score);
  }
  return max;
}

// out[e] = out[e] * factor + sum over k < depth of weights[k] values[k * stride + e].
template <typename T>
void AddValues(int64_t depth, const T* weights, const T* values, int64_t stride, int64_t size,
               T factor, T* out) {
  constexpr int kLanes = simd::kLanes<T>;
  constexpr int kVecs = 4;
  int64_t e = 0;
  for (; e + kVecs * kLanes <= size; e += kVecs * kLanes) {
    simd::Vec<T> acc[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[v] = simd::Load<T>(out + e + v * kLanes) * factor;
    for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        acc[v] += weights[k] * simd::Load<T>(values + k * stride + e + v * kLanes);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) simd::Store<T>(out + e + v * kLanes, acc[v]);
  }
  for (; e + kLanes <= size; e += kLanes) {
    simd::Vec<T> acc = simd::Load<T>(out + e) * factor;
    for (int64_t k = 0; k < depth; ++k) acc += weights[k] * simd::Load<T>(values + k * stride + e);
    simd::Store<T>(out + e, acc);
  }
  for (; e < size; ++e) {
    T acc = out[e] * factor;
    for (int64_t k = 0; k < depth; ++k) acc += weights[k] * values[k * stride + e];
    out[e] = acc;
  }
}

template <typename T>
T Exp2Of(T x) {
  return Exp2(simd::Splat<T>(x))[0];
}

}  // namespace

template <typename T>
int64_t FewQueriesPartial(const SoftmaxForwardParams<T>& params, const AttentionTask& task) {
  return PaddedToLanes<T>(params.num_kv_heads * params.group * task.q_len *
                          (params.value_size + 2));
}

template <typename T>
int64_t FewQueriesScratch(const SoftmaxForwardParams<T>& params) {
  return kBlockKeys +
         kFewQueries * params.num_kv_heads * params.group * PaddedToLanes<T>(params.head_size);
}

template <typename T>
void FewQueriesForward(const SoftmaxForwardParams<T>& params, const AttentionTask& task,
                       int64_t chunk, T* scratch, T* partial) {
  constexpr int kLanes = simd::kLanes<T>;
  const T infinity = std::numeric_limits<T>::infinity();
  const T factor = static_cast<T>(params.scale * kLog2E);
  const int64_t num_rows = params.num_kv_heads * params.group * task.q_len;  // head, then query
  const int64_t row_size = params.value_size + 2;
  const int64_t q_stride = PaddedToLanes<T>(params.head_size);
  T* weights = scratch;
  T* queries = scratch + kBlockKeys;
  for (int64_t r = 0; r < num_rows; ++r) {
    const T* q = params.q.at(task.q_begin + r % task.q_len, r / task.q_len);
    for (int64_t d = 0; d < params.head_size; ++d) queries[r * q_stride + d] = q[d] * factor;
    std::fill(queries + r * q_stride + params.head_size, queries + (r + 1) * q_stride, T{0});
    T* state = partial + r * row_size;
    std::fill_n(state, row_size, T{0});
    state[params.value_size] = -infinity;
  }

  // All heads of a block of keys before the next block: memory is read in nearly ascending order.
  const int64_t chunk_end = std::min((chunk + 1) * kFewQueriesChunk, task.kv_len);
  const int64_t offset = DiagonalOffset(task);
  for (int64_t first = chunk * kFewQueriesChunk; first < chunk_end; first += kBlockKeys) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t kv_head = r / (params.group * task.q_len);
      const int64_t visible = offset + 1 + r % task.q_len;
      const int64_t num_keys = std::min(std::min(kBlockKeys, chunk_end - first), visible - first);
      if (num_keys <= 0) continue;
      const simd::Vec<T> max =
          Scores<T>(queries + r * q_stride, params.k.at(task.kv_begin + first, kv_head),
                    params.k.row_stride, params.head_size, num_keys, weights);
      T* state = partial + r * row_size;
      T& state_max = state[params.value_size];
      T& state_sum = state[params.value_size + 1];
      const T old_max = state_max;
      state_max = std::max(old_max, simd::Max<T>(max));
      const T reference = state_max == -infinity ? T{0} : state_max;
      simd::Vec<T> sum = {};
      for (int64_t k = 0; k < num_keys; k += kLanes) {
        const simd::Vec<T> weight = Exp2(simd::Load<T>(weights + k) - reference);
        sum += weight;
        simd::Store<T>(weights + k, weight);
      }
      const T rescale = Exp2Of<T>(old_max - reference);
      state_sum = state_sum * rescale + simd::Sum<T>(sum);
      AddValues<T>(num_keys, weights, params.v.at(task.kv_begin + first, kv_head),
                   params.v.row_stride, params.value_size, rescale, state);
    }
  }
}

template <typename T>
void FewQueriesMerge(const SoftmaxForwardParams<T>& params, const AttentionTask& task,
                     int64_t num_chunks, const T* partials) {
  const T infinity = std::numeric_limits<T>::infinity();
  const int64_t partial_size = FewQueriesPartial(params, task);
  const int64_t size = params.value_size;
  for (int64_t r = 0; r < params.num_kv_heads * params.group * task.q_len; ++r) {
    T max = -infinity;
    for (int64_t c = 0; c < num_chunks; ++c) {
      max = std::max(max, partials[c * partial_size + r * (size + 2) + size]);
    }
    const T reference = max == -infinity ? T{0} : max;
    T* out = params.out.at(task.q_begin + r % task.q_len, r / task.q_len);
    std::fill_n(out, size, T{0});
    T sum = 0;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const T* state = partials + c * partial_size + r * (size + 2);
      const T weight = Exp2Of<T>(state[size] - reference);
      sum += state[size + 1] * weight;
      for (int64_t e = 0; e < size; ++e) out[e] += state[e] * weight;
    }
    const T inverse = sum == 0 ? T{0} : 1 / sum;
    for (int64_t e = 0; e < size; ++e) out[e] *= inverse;
    *params.lse.at(task.q_begin + r % task.q_len, r / task.q_len) =
        sum == 0 ? -infinity : max * static_cast<T>(kLn2) + std::log(sum);
  }
}

template int64_t FewQueriesPartial(const SoftmaxForwardParams<float>&, const AttentionTask&);
template int64_t FewQueriesPartial(const SoftmaxForwardParams<double>&, const AttentionTask&);
template int64_t FewQueriesScratch(const SoftmaxForwardParams<float>&);
template int64_t FewQueriesScratch(const SoftmaxForwardParams<double>&);
template void FewQueriesForward(const SoftmaxForwardParams<float>&, const AttentionTask&, int64_t,
                                float*, float*);
template void FewQueriesForward(const SoftmaxForwardParams<double>&, const AttentionTask&, int64_t,
                                double*, double*);
template void FewQueriesMerge(const SoftmaxForwardParams<float>&, const AttentionTask&, int64_t,
                              const float*);
template void FewQueriesMerge(const SoftmaxForwardParams<double>&, const AttentionTask&, int64_t,
                              const double*);

}  // namespace evenkeel
