// What the tests of the softmax attention kernels share: random tensors, float64 loops on the host,
// and the checks of both kernels against them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "tests/gpu/device_array.h"

namespace evenkeel::softmax_attention_check {

struct Shape {
  int heads, kv_heads, head_dim, value_dim;
  int64_t q_rows, kv_rows;
};

struct Tensors {
  Shape shape;
  int64_t q_stride, k_stride, v_stride, o_stride;
  std::vector<Bits> q, k, v, dout;
};

// Rows that no task names are poison: reading one would show.
inline Tensors RandomTensors(const Shape& shape, const std::vector<AttentionTask>& tasks,
                             std::mt19937& rng) {
  Tensors t;
  t.shape = shape;
  t.q_stride = shape.heads * shape.head_dim + 8;
  t.k_stride = shape.kv_heads * shape.head_dim + 16;
  t.v_stride = shape.kv_heads * shape.value_dim + 24;
  t.o_stride = shape.heads * shape.value_dim + 8;
  t.q.assign(shape.q_rows * t.q_stride, kPoison);
  t.dout.assign(shape.q_rows * t.o_stride, kPoison);
  t.k.assign(shape.kv_rows * t.k_stride, kPoison);
  t.v.assign(shape.kv_rows * t.v_stride, kPoison);
  const auto fill = [&](std::vector<Bits>& x, int64_t stride, int64_t width, int64_t row) {
    for (int64_t i = 0; i < width; ++i) x[row * stride + i] = RandomBits(rng);
  };
  std::vector<char> key_named(shape.kv_rows, 0);
  for (const AttentionTask& task : tasks) {
    for (int64_t i = 0; i < task.q_len; ++i) {
      fill(t.q, t.q_stride, shape.heads * shape.head_dim, task.q_begin + i);
      fill(t.dout, t.o_stride, shape.heads * shape.value_dim, task.q_begin + i);
    }
    if (task.q_len == 0) continue;
    for (int64_t j = task.kv_begin; j < task.kv_begin + task.kv_len; ++j) {
      if (key_named[j]) continue;
      key_named[j] = 1;
      fill(t.k, t.k_stride, shape.kv_heads * shape.head_dim, j);
      fill(t.v, t.v_stride, shape.kv_heads * shape.value_dim, j);
    }
  }
  return t;
}

struct Reference {
  std::vector<double> out, lse, dq, dk, dv;  // dense
};

// `dout_out` is the rounded output that delta is computed from.
inline Reference Compute(const Tensors& t, const std::vector<AttentionTask>& tasks, double scale) {
  const Shape& s = t.shape;
  const int D = s.head_dim, E = s.value_dim, H = s.heads, G = s.kv_heads;
  Reference r;
  r.out.assign(s.q_rows * H * E, 0.0);
  r.lse.assign(s.q_rows * H, 0.0);
  r.dq.assign(s.q_rows * H * D, 0.0);
  r.dk.assign(s.kv_rows * G * D, 0.0);
  r.dv.assign(s.kv_rows * G * E, 0.0);
  std::vector<double> p, q(D), dout(E), k(s.kv_rows * G * D), v(s.kv_rows * G * E);
  for (int64_t j = 0; j < s.kv_rows; ++j) {
    for (int i = 0; i < G * D; ++i) k[j * G * D + i] = FromBits(t.k[j * t.k_stride + i]);
    for (int i = 0; i < G * E; ++i) v[j * G * E + i] = FromBits(t.v[j * t.v_stride + i]);
  }
  for (const AttentionTask& task : tasks) {
    for (int64_t i = 0; i < task.q_len; ++i) {
      const int64_t row = task.q_begin + i;
      const int64_t ahead = std::min(task.q_ahead, task.q_len);
      const int64_t seen = std::min(task.kv_len - task.q_len + i + 1 + ahead, task.kv_len);
      for (int h = 0; h < H; ++h) {
        const int g = h / (H / G);
        const double* kh = &k[(task.kv_begin * G + g) * D];
        const double* vh = &v[(task.kv_begin * G + g) * E];
        double* out = &r.out[(row * H + h) * E];
        if (seen <= 0) {
          r.lse[row * H + h] = -std::numeric_limits<double>::infinity();
          continue;
        }
        for (int d = 0; d < D; ++d) q[d] = FromBits(t.q[row * t.q_stride + h * D + d]);
        for (int e = 0; e < E; ++e) dout[e] = FromBits(t.dout[row * t.o_stride + h * E + e]);
        p.assign(seen, 0.0);
        double most = -std::numeric_limits<double>::infinity(), sum = 0.0;
        for (int64_t j = 0; j < seen; ++j) {
          for (int d = 0; d < D; ++d) p[j] += q[d] * kh[j * G * D + d];
          p[j] *= scale;
          most = std::max(most, p[j]);
        }
        for (double& x : p) sum += x = std::exp(x - most);
        r.lse[row * H + h] = most + std::log(sum);
        double delta = 0.0;
        for (int64_t j = 0; j < seen; ++j) {
          p[j] /= sum;
          for (int e = 0; e < E; ++e) out[e] += p[j] * vh[j * G * E + e];
        }
        for (int e = 0; e < E; ++e) delta += out[e] * dout[e];
        double* dq = &r.dq[(row * H + h) * D];
        double* dk = &r.dk[(task.kv_begin * G + g) * D];
        double* dv = &r.dv[(task.kv_begin * G + g) * E];
        for (int64_t j = 0; j < seen; ++j) {
          double dp = 0.0;
          for (int e = 0; e < E; ++e) {
            dp += dout[e] * vh[j * G * E + e];
            dv[j * G * E + e] += p[j] * dout[e];
          }
          const double ds = scale * p[j] * (dp - delta);
          for (int d = 0; d < D; ++d) {
            dq[d] += ds * kh[j * G * D + d];
            dk[j * G * D + d] += ds * q[d];
          }
        }
      }
    }
  }
  return r;
}

struct Results {
  std::vector<Bits> out, dq, dk16, dv16;
  std::vector<float> lse, dk, dv;  // added to 0.25 and -0.5
  std::vector<float> dk32, dv32;
};

inline void RunKernels(const Tensors& t, const std::vector<AttentionTask>& tasks, double scale,
                       bool portable, Results& results) {
  const Shape& s = t.shape;
  const int dim = std::max(s.head_dim, s.value_dim);
  const SoftmaxAttentionPlan plan =
      PlanSoftmaxAttention(tasks.data(), tasks.size(), TilingOf(dim), s.heads / s.kv_heads, true);
  const DeviceArray<std::byte> plan_memory(PlanMemoryBytes(plan));
  ASSERT_EQ(
      cudaMemcpy(plan_memory.data(), plan.bytes.data(), plan.bytes.size(), cudaMemcpyHostToDevice),
      cudaSuccess);
  ASSERT_EQ(LaunchPlanTiles(plan, plan_memory.data(), nullptr), cudaSuccess);
  const DeviceArray<Bits> q(t.q), k(t.k), v(t.v), dout(t.dout);
  const DeviceArray<Bits> out(s.q_rows * t.o_stride), dq(s.q_rows * t.q_stride);
  const DeviceArray<Bits> dk16(s.kv_rows * t.k_stride), dv16(s.kv_rows * t.v_stride);
  const DeviceArray<float> dk(std::vector<float>(s.kv_rows * t.k_stride, 0.25f));
  const DeviceArray<float> dv(std::vector<float>(s.kv_rows * t.v_stride, -0.5f));
  const DeviceArray<float> dk32(s.kv_rows * t.k_stride), dv32(s.kv_rows * t.v_stride);
  const DeviceArray<float> lse(s.q_rows * s.heads);
  const DeviceArray<std::byte> workspace(
      SoftmaxBackwardWorkspaceBytes(plan, s.heads, s.head_dim, s.value_dim));

  SoftmaxForwardParams f;
  f.plan = ViewOf(plan, plan_memory.data());
  f.num_heads = s.heads;
  f.num_kv_heads = s.kv_heads;
  f.head_dim = s.head_dim;
  f.value_dim = s.value_dim;
  f.scale = static_cast<float>(scale);
  f.q_rows = s.q_rows;
  f.kv_rows = s.kv_rows;
  f.portable = portable;
  f.q = q.data();
  f.k = k.data();
  f.v = v.data();
  f.out = out.data();
  f.lse = lse.data();
  f.q_stride = t.q_stride;
  f.k_stride = t.k_stride;
  f.v_stride = t.v_stride;
  f.out_stride = t.o_stride;
  ASSERT_EQ(LaunchSoftmaxForward(f, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  SoftmaxBackwardParams b;
  b.forward = f;
  b.dout = dout.data();
  b.dq = dq.data();
  b.dk = dk.data();
  b.dv = dv.data();
  b.mode = KeyGradientMode::kAddFloat32;
  b.dout_stride = t.o_stride;
  b.dq_stride = t.q_stride;
  b.dk_stride = t.k_stride;
  b.dv_stride = t.v_stride;
  b.workspace = workspace.data();
  ASSERT_EQ(LaunchSoftmaxBackward(b, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  b.dk = dk32.data();
  b.dv = dv32.data();
  b.mode = KeyGradientMode::kWriteFloat32;
  ASSERT_EQ(LaunchSoftmaxBackward(b, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  b.dk = dk16.data();
  b.dv = dv16.data();
  b.mode = KeyGradientMode::kWriteBf16;
  ASSERT_EQ(LaunchSoftmaxBackward(b, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  results = {out.Download(), dq.Download(), dk16.Download(), dv16.Download(), lse.Download(),
             dk.Download(),  dv.Download(), dk32.Download(), dv32.Download()};
}

// Rounding the result alone costs 1.7e-3 in the 2-norm; probabilities and score gradients are
// rounded once more on their way through the products.
constexpr double kForwardBound = 4e-3;
constexpr double kBackwardBound = 6e-3;

struct Errors {
  RelativeError out, dq, dk, dv, dk16, dv16, dk32, dv32;
};

inline void CheckKernels(const Tensors& t, const std::vector<AttentionTask>& tasks, double scale,
                         const Reference& want, bool portable, Errors& errors) {
  const Shape& shape = t.shape;
  SCOPED_TRACE(portable ? "portable kernels" : "this GPU's kernels");
  Results got, again;
  ASSERT_NO_FATAL_FAILURE(RunKernels(t, tasks, scale, portable, got));
  ASSERT_NO_FATAL_FAILURE(RunKernels(t, tasks, scale, portable, again));
  EXPECT_EQ(got.out, again.out);
  EXPECT_EQ(got.dq, again.dq);
  EXPECT_EQ(got.dk, again.dk);
  EXPECT_EQ(got.dv, again.dv);
  EXPECT_EQ(got.dk16, again.dk16);
  EXPECT_EQ(got.dv16, again.dv16);

  const int D = shape.head_dim, E = shape.value_dim, H = shape.heads, G = shape.kv_heads;
  std::vector<char> query_named(shape.q_rows, 0), key_named(shape.kv_rows, 0);
  for (const AttentionTask& task : tasks) {
    std::fill_n(query_named.begin() + task.q_begin, task.q_len, 1);
    if (task.q_len > 0) std::fill_n(key_named.begin() + task.kv_begin, task.kv_len, 1);
  }
  auto& [out, dq, dk, dv, dk16, dv16, dk32, dv32] = errors;
  double lse_error = 0.0;
  int64_t touched = 0;
  for (int64_t i = 0; i < shape.q_rows; ++i) {
    for (int c = 0; c < t.o_stride; ++c) {
      const Bits x = got.out[i * t.o_stride + c];
      if (query_named[i] && c < H * E) {
        out.Add(FromBits(x), want.out[i * H * E + c]);
      } else {
        touched += x != kPoison;
      }
    }
    for (int c = 0; c < t.q_stride; ++c) {
      const Bits x = got.dq[i * t.q_stride + c];
      if (query_named[i] && c < H * D) {
        dq.Add(FromBits(x), want.dq[i * H * D + c]);
      } else {
        touched += x != kPoison;
      }
    }
    for (int h = 0; h < H && query_named[i]; ++h) {
      const double x = got.lse[i * H + h], y = want.lse[i * H + h];
      if (std::isinf(y)) {
        EXPECT_EQ(x, y);
      } else {
        lse_error = std::max(lse_error, std::isnan(x) ? 1e30 : std::abs(x - y));
      }
    }
  }
  for (int64_t j = 0; j < shape.kv_rows; ++j) {
    for (int c = 0; c < t.k_stride; ++c) {
      const float x = got.dk[j * t.k_stride + c], z = got.dk32[j * t.k_stride + c];
      const Bits y = got.dk16[j * t.k_stride + c];
      if (key_named[j] && c < G * D) {
        dk.Add(x - 0.25, want.dk[j * G * D + c]);
        dk16.Add(FromBits(y), want.dk[j * G * D + c]);
        dk32.Add(z, want.dk[j * G * D + c]);
      } else {
        touched += (x != 0.25f) + (y != kPoison) + !std::isnan(z);
      }
    }
    for (int c = 0; c < t.v_stride; ++c) {
      const float x = got.dv[j * t.v_stride + c], z = got.dv32[j * t.v_stride + c];
      const Bits y = got.dv16[j * t.v_stride + c];
      if (key_named[j] && c < G * E) {
        dv.Add(x + 0.5, want.dv[j * G * E + c]);
        dv16.Add(FromBits(y), want.dv[j * G * E + c]);
        dv32.Add(z, want.dv[j * G * E + c]);
      } else {
        touched += (x != -0.5f) + (y != kPoison) + !std::isnan(z);
      }
    }
  }
  EXPECT_EQ(touched, 0) << "elements outside the tasks were written";
  EXPECT_LE(lse_error, 1e-4);
  EXPECT_LE(out.value(), kForwardBound);
  EXPECT_LE(dq.value(), kBackwardBound);
  EXPECT_LE(dk.value(), kBackwardBound);
  EXPECT_LE(dv.value(), kBackwardBound);
  EXPECT_LE(dk32.value(), kBackwardBound);
  EXPECT_LE(dv32.value(), kBackwardBound);
  EXPECT_LE(dk16.value(), kBackwardBound);
  EXPECT_LE(dv16.value(), kBackwardBound);
}

inline void Check(const Shape& shape, const std::vector<AttentionTask>& tasks, unsigned seed) {
  SCOPED_TRACE("heads " + std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) +
               " dims " + std::to_string(shape.head_dim) + "/" + std::to_string(shape.value_dim) +
               " tasks " + std::to_string(tasks.size()) + " seed " + std::to_string(seed));
  std::mt19937 rng(seed);
  const double scale = 1.0 / std::sqrt(shape.head_dim);
  const Tensors t = RandomTensors(shape, tasks, rng);
  const Reference want = Compute(t, tasks, scale);
  Errors of_gpu, of_portable;
  CheckKernels(t, tasks, scale, want, false, of_gpu);
  CheckKernels(t, tasks, scale, want, true, of_portable);
  // The two round at different places. Errors of a few pairs are a few roundings, which may be
  // lucky in one of the two; the thousandth is for sums that are next to zero.
  int64_t pairs = 0;
  for (const AttentionTask& task : tasks) pairs += task.q_len * task.kv_len;
  if (pairs < 2000) return;
  const auto compare = [](const RelativeError& gpu, const RelativeError& portable) {
    EXPECT_LE(gpu.value(), 2.0 * portable.value() + 1e-3);
  };
  compare(of_gpu.out, of_portable.out);
  compare(of_gpu.dq, of_portable.dq);
  compare(of_gpu.dk, of_portable.dk);
  compare(of_gpu.dv, of_portable.dv);
  compare(of_gpu.dk16, of_portable.dk16);
  compare(of_gpu.dv16, of_portable.dv16);
  compare(of_gpu.dk32, of_portable.dk32);
  compare(of_gpu.dv32, of_portable.dv32);
}

}  // namespace evenkeel::softmax_attention_check
