// Attention by plain loops over an S x S row of scores: what the kernels are held to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/attention_task.h"
#include "runtime/base/philox.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/tensor.h"

namespace evenkeel {

struct AttentionShape {
  int64_t q_rows = 0;
  int64_t kv_rows = 0;
  int64_t num_heads = 1;
  int64_t num_kv_heads = 1;
  int64_t head_size = 1;
  int64_t value_size = 1;
};

// Dense operands and results of one call, in T.
template <typename T>
struct AttentionData {
  AttentionShape shape;
  std::vector<T> q, k, v, out, lse, dout, dq, dk, dv;

  explicit AttentionData(const AttentionShape& s, uint64_t seed = 1) : shape(s) {
    const auto fill = [&](std::vector<T>& x, int64_t n, uint64_t stream) {
      const Philox random(seed, stream);
      for (int64_t i = 0; i < n; ++i) {
        // Values of a float, so that both types compute the same thing.
        x.push_back(static_cast<float>(random.Normal(static_cast<uint64_t>(i))));
      }
    };
    fill(q, s.q_rows * s.num_heads * s.head_size, 0);
    fill(k, s.kv_rows * s.num_kv_heads * s.head_size, 1);
    fill(v, s.kv_rows * s.num_kv_heads * s.value_size, 2);
    fill(dout, s.q_rows * s.num_heads * s.value_size, 3);
    // What no task covers keeps its values; gradients of keys are added to theirs.
    fill(out, s.q_rows * s.num_heads * s.value_size, 4);
    fill(lse, s.q_rows * s.num_heads, 5);
    fill(dq, s.q_rows * s.num_heads * s.head_size, 6);
    fill(dk, s.kv_rows * s.num_kv_heads * s.head_size, 7);
    fill(dv, s.kv_rows * s.num_kv_heads * s.value_size, 8);
  }

  template <typename U>
  AttentionData<U> As() const {
    AttentionData<U> to(AttentionShape{});
    to.shape = shape;
    const auto copy = [](const std::vector<T>& x) { return std::vector<U>(x.begin(), x.end()); };
    to.q = copy(q), to.k = copy(k), to.v = copy(v), to.out = copy(out), to.lse = copy(lse);
    to.dout = copy(dout), to.dq = copy(dq), to.dk = copy(dk), to.dv = copy(dv);
    return to;
  }

  Shape QShape() const { return {shape.q_rows, shape.num_heads, shape.head_size}; }
  Shape KShape() const { return {shape.kv_rows, shape.num_kv_heads, shape.head_size}; }
  Shape VShape() const { return {shape.kv_rows, shape.num_kv_heads, shape.value_size}; }
  Shape OutShape() const { return {shape.q_rows, shape.num_heads, shape.value_size}; }
  Shape LseShape() const { return {shape.q_rows, shape.num_heads}; }
};

template <typename T>
TensorView ViewOf(std::vector<T>& x, const Shape& shape) {
  return TensorView(x.data(), DTypeOf<T>::value, shape);
}

// A pool and an arena for a test.
struct TestContext {
  explicit TestContext(int threads) : pool(threads) {}

  MemoryTracker tracker;
  ThreadPool pool;
  Arena arena = Arena::Create(int64_t{1} << 32, tracker).value();
  OpContext context{pool, arena};
};

// Keys that query i of the task sees: those at or before its position, if key j is at position j.
inline int64_t NumKeysSeen(const AttentionTask& task, int64_t i) {
  int64_t seen = 0;
  const int64_t behind_last = task.q_len - 1 - i;
  for (int64_t j = 0; j < task.kv_len; ++j)
    seen += behind_last - (task.kv_len - 1 - j) <= task.q_ahead;
  return seen;
}

// Computes out and lse (softmax) or out alone (relu), all sums in T.
template <typename T>
void ReferenceForward(const std::vector<AttentionTask>& tasks, double scale, bool relu,
                      AttentionData<T>& data) {
  const AttentionShape& s = data.shape;
  for (const AttentionTask& task : tasks) {
    for (int64_t h = 0; h < s.num_heads; ++h) {
      const int64_t g = h / (s.num_heads / s.num_kv_heads);
      for (int64_t i = 0; i < task.q_len; ++i) {
        const int64_t row = (task.q_begin + i) * s.num_heads + h;
        const int64_t num_keys = NumKeysSeen(task, i);
        std::vector<T> weights;
        T max = -std::numeric_limits<T>::infinity(), sum = 0;
        for (int64_t j = 0; j < num_keys; ++j) {
          T score = 0;
          for (int64_t d = 0; d < s.head_size; ++d) {
            score += data.q[row * s.head_size + d] *
                     data.k[((task.kv_begin + j) * s.num_kv_heads + g) * s.head_size + d];
          }
          weights.push_back(score * static_cast<T>(scale));
          max = std::max(max, weights.back());
        }
        for (T& weight : weights) {
          weight = relu ? std::max(weight, T{0}) : std::exp(weight - max);
          sum += weight;
        }
        for (int64_t e = 0; e < s.value_size; ++e) {
          T total = 0;
          for (int64_t j = 0; j < num_keys; ++j) {
            total +=
                weights[j] * data.v[((task.kv_begin + j) * s.num_kv_heads + g) * s.value_size + e];
          }
          data.out[row * s.value_size + e] = relu || num_keys == 0 ? total : total / sum;
        }
        if (!relu) data.lse[row] = max + std::log(sum);
      }
    }
  }
}

// Computes dq and adds to dk and dv, from out and lse in `data`, all sums in T.
template <typename T>
void ReferenceBackward(const std::vector<AttentionTask>& tasks, double scale_in, bool relu,
                       AttentionData<T>& data) {
  const AttentionShape& s = data.shape;
  const T scale = static_cast<T>(scale_in);
  for (const AttentionTask& task : tasks) {
    for (int64_t h = 0; h < s.num_heads; ++h) {
      const int64_t g = h / (s.num_heads / s.num_kv_heads);
      for (int64_t i = 0; i < task.q_len; ++i) {
        const int64_t row = (task.q_begin + i) * s.num_heads + h;
        const T* q = &data.q[row * s.head_size];
        const T* dout = &data.dout[row * s.value_size];
        T* dq = &data.dq[row * s.head_size];
        T delta = 0;
        for (int64_t e = 0; e < s.value_size; ++e) {
          delta += dout[e] * data.out[row * s.value_size + e];
        }
        for (int64_t d = 0; d < s.head_size; ++d) dq[d] = 0;
        const int64_t num_keys = NumKeysSeen(task, i);
        for (int64_t j = 0; j < num_keys; ++j) {
          const int64_t kv_row = (task.kv_begin + j) * s.num_kv_heads + g;
          const T* k = &data.k[kv_row * s.head_size];
          const T* v = &data.v[kv_row * s.value_size];
          T score = 0, dweight = 0;
          for (int64_t d = 0; d < s.head_size; ++d) score += q[d] * k[d];
          for (int64_t e = 0; e < s.value_size; ++e) dweight += dout[e] * v[e];
          const T weight =
              relu ? std::max(score * scale, T{0}) : std::exp(score * scale - data.lse[row]);
          const T dscore = relu ? (score * scale > 0 ? dweight * scale : T{0})
                                : weight * (dweight - delta) * scale;
          for (int64_t e = 0; e < s.value_size; ++e) {
            data.dv[kv_row * s.value_size + e] += weight * dout[e];
          }
          for (int64_t d = 0; d < s.head_size; ++d) {
            data.dk[kv_row * s.head_size + d] += dscore * q[d];
            dq[d] += dscore * k[d];
          }
        }
      }
    }
  }
}

// Returns max |a - b| over max |b|. Equal infinities do not differ; NaN counts as infinitely far.
template <typename T, typename U>
double RelativeError(const std::vector<T>& a, const std::vector<U>& b) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < b.size(); ++i) {
    const double x = a[i], y = b[i];
    if (x == y) continue;
    const double difference = std::abs(x - y);
    if (!(difference < 1e300)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, difference);
  }
  for (const U& y : b) {
    if (std::isfinite(y)) largest = std::max(largest, std::abs(static_cast<double>(y)));
  }
  return worst / largest;
}

}  // namespace evenkeel
