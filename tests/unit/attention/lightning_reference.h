// Lightning attention token by token in plain loops, and what its tests share.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "attention/lightning_attention.h"
#include "runtime/base/check.h"
#include "runtime/base/philox.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/arena.h"

namespace evenkeel {

template <typename T>
struct LightningProblem {
  std::vector<int64_t> cu_seqlens;
  std::vector<double> slopes;
  int64_t key_size = 0, value_size = 0;
  std::vector<T> q, k, v;        // [T, H, D], [T, H, D], [T, H, E]
  std::vector<T> initial_state;  // [B, H, D, E] or empty
  std::vector<T> dout;           // [T, H, E]
  std::vector<T> dfinal_state;   // [B, H, D, E] or empty

  int64_t num_tokens() const { return cu_seqlens.back(); }
  int64_t num_heads() const { return static_cast<int64_t>(slopes.size()); }
  int64_t num_documents() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
  size_t num_states() const {
    return static_cast<size_t>(num_documents() * num_heads() * key_size * value_size);
  }
};

template <typename T>
struct LightningResult {
  std::vector<T> out, final_state;
  std::vector<T> dq, dk, dv, dinitial_state;
};

template <typename T>
std::vector<T> NormalValues(int64_t n, uint64_t seed, uint64_t stream) {
  const Philox random(seed, stream);
  std::vector<T> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    values[static_cast<size_t>(i)] = static_cast<T>(random.Normal(static_cast<uint64_t>(i)));
  }
  return values;
}

// Random inputs; float32 and float64 problems of one seed hold the same values up to rounding.
template <typename T>
LightningProblem<T> MakeLightningProblem(std::vector<int64_t> cu_seqlens,
                                         std::vector<double> slopes, int64_t key_size,
                                         int64_t value_size, bool with_states, uint64_t seed) {
  LightningProblem<T> p;
  p.cu_seqlens = std::move(cu_seqlens);
  p.slopes = std::move(slopes);
  p.key_size = key_size;
  p.value_size = value_size;
  const int64_t rows = p.num_tokens() * p.num_heads();
  p.q = NormalValues<T>(rows * key_size, seed, 1);
  p.k = NormalValues<T>(rows * key_size, seed, 2);
  p.v = NormalValues<T>(rows * value_size, seed, 3);
  p.dout = NormalValues<T>(rows * value_size, seed, 4);
  if (with_states) {
    p.initial_state = NormalValues<T>(static_cast<int64_t>(p.num_states()), seed, 5);
    p.dfinal_state = NormalValues<T>(static_cast<int64_t>(p.num_states()), seed, 6);
  }
  return p;
}

// The recurrences as written in the headers, in type T: forward, then
//   dS_t = lambda dS_{t+1} + q_t do_t^T,  dq_t = S_t do_t,  dk_t = dS_t v_t,  dv_t = dS_t^T k_t.
template <typename T>
LightningResult<T> LightningReference(const LightningProblem<T>& p) {
  const int64_t num_d = p.key_size, num_e = p.value_size, num_h = p.num_heads();
  LightningResult<T> r;
  r.out.resize(p.v.size());
  r.dv.resize(p.v.size());
  r.dq.resize(p.q.size());
  r.dk.resize(p.q.size());
  r.final_state.resize(p.num_states());
  r.dinitial_state.resize(p.num_states());
  for (int64_t b = 0; b < p.num_documents(); ++b) {
    for (int64_t h = 0; h < num_h; ++h) {
      const T lambda = static_cast<T>(std::exp(-p.slopes[static_cast<size_t>(h)]));
      const size_t at = static_cast<size_t>((b * num_h + h) * num_d * num_e);
      const auto n = static_cast<size_t>(num_d * num_e);
      std::vector<T> s(n), ds(n);
      if (!p.initial_state.empty()) s.assign(&p.initial_state[at], &p.initial_state[at] + n);
      if (!p.dfinal_state.empty()) ds.assign(&p.dfinal_state[at], &p.dfinal_state[at] + n);
      for (int64_t t = p.cu_seqlens[static_cast<size_t>(b)];
           t < p.cu_seqlens[static_cast<size_t>(b) + 1]; ++t) {
        const int64_t q0 = (t * num_h + h) * num_d, v0 = (t * num_h + h) * num_e;
        for (int64_t d = 0; d < num_d; ++d) {
          for (int64_t e = 0; e < num_e; ++e) {
            T& state = s[static_cast<size_t>(d * num_e + e)];
            state = lambda * state +
                    p.k[static_cast<size_t>(q0 + d)] * p.v[static_cast<size_t>(v0 + e)];
            r.out[static_cast<size_t>(v0 + e)] += p.q[static_cast<size_t>(q0 + d)] * state;
            r.dq[static_cast<size_t>(q0 + d)] += p.dout[static_cast<size_t>(v0 + e)] * state;
          }
        }
      }
      std::copy(s.begin(), s.end(), &r.final_state[at]);
      for (int64_t t = p.cu_seqlens[static_cast<size_t>(b) + 1] - 1;
           t >= p.cu_seqlens[static_cast<size_t>(b)]; --t) {
        const int64_t q0 = (t * num_h + h) * num_d, v0 = (t * num_h + h) * num_e;
        for (int64_t d = 0; d < num_d; ++d) {
          for (int64_t e = 0; e < num_e; ++e) {
            T& state = ds[static_cast<size_t>(d * num_e + e)];
            state += p.q[static_cast<size_t>(q0 + d)] * p.dout[static_cast<size_t>(v0 + e)];
            r.dk[static_cast<size_t>(q0 + d)] += p.v[static_cast<size_t>(v0 + e)] * state;
            r.dv[static_cast<size_t>(v0 + e)] += p.k[static_cast<size_t>(q0 + d)] * state;
            state *= lambda;
          }
        }
      }
      std::copy(ds.begin(), ds.end(), &r.dinitial_state[at]);
    }
  }
  return r;
}

// Runs forward and backward on `num_threads` threads. Buffers hold no slack, so that a sanitizer
// sees every step over their ends.
template <typename T>
LightningResult<T> RunLightning(const LightningProblem<T>& p, int num_threads = 1) {
  MemoryTracker tracker;
  auto arena = Arena::Create(int64_t{1} << 30, tracker);
  EK_CHECK(arena.ok());
  ThreadPool pool(num_threads);
  const OpContext context = {pool, *arena, DTypeOf<T>::value};
  LightningResult<T> r;
  r.out.assign(p.v.size(), T{-7});
  r.dv.assign(p.v.size(), T{-7});
  r.dq.assign(p.q.size(), T{-7});
  r.dk.assign(p.q.size(), T{-7});
  r.final_state.assign(p.num_states(), T{-7});
  r.dinitial_state.assign(p.num_states(), T{-7});
  const DType dtype = DTypeOf<T>::value;
  const Shape keys = {p.num_tokens(), p.num_heads(), p.key_size};
  const Shape values = {p.num_tokens(), p.num_heads(), p.value_size};
  const Shape states = {p.num_documents(), p.num_heads(), p.key_size, p.value_size};
  const auto in = [&](const std::vector<T>& x, Shape shape) {
    return x.empty() ? ConstTensorView() : ConstTensorView(x.data(), dtype, shape);
  };
  const auto rows = [&](const std::vector<T>& x, Shape shape) {
    return ConstTensorView(x.data(), dtype, shape);
  };
  LightningAttentionForward(context, p.cu_seqlens, p.slopes, rows(p.q, keys), rows(p.k, keys),
                            rows(p.v, values), in(p.initial_state, states),
                            TensorView(r.out.data(), dtype, values),
                            TensorView(r.final_state.data(), dtype, states));
  LightningAttentionBackward(
      context, p.cu_seqlens, p.slopes, rows(p.q, keys), rows(p.k, keys), rows(p.v, values),
      in(p.initial_state, states), rows(p.dout, values), in(p.dfinal_state, states),
      TensorView(r.dq.data(), dtype, keys), TensorView(r.dk.data(), dtype, keys),
      TensorView(r.dv.data(), dtype, values), TensorView(r.dinitial_state.data(), dtype, states));
  EK_CHECK(arena->bytes_in_use() == 0) << "scratch was not given back";
  return r;
}

// The largest |a - b|, divided by the largest |b| (or 1, if that is larger).
template <typename A, typename B>
double RelativeError(const std::vector<A>& a, const std::vector<B>& b) {
  EK_CHECK(a.size() == b.size());
  double error = 0, scale = 1;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    // Not std::max: a NaN must win.
    if (!(difference <= error)) error = difference;
    scale = std::fmax(scale, std::abs(static_cast<double>(b[i])));
  }
  return error / scale;
}

}  // namespace evenkeel
