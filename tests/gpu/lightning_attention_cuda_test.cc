// The lightning attention kernels against the token recurrence in float64 on the host.
#include "attention/kernels/cuda/lightning_attention_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/device_array.h"

namespace evenkeel {
namespace {

struct Case {
  std::vector<int64_t> cu_seqlens;
  int heads, head_dim, value_dim;
  int segment_rows;
  std::vector<float> slopes;
  bool states;
  bool in_place = false;  // the states after the documents are written over those before
};

struct Tensors {
  int64_t tokens, qk_stride, v_stride;
  std::vector<Bits> q, k, v, dout;
  std::vector<float> initial, dfinal;
};

Tensors RandomTensors(const Case& c, std::mt19937& rng) {
  Tensors t;
  t.tokens = c.cu_seqlens.back();
  t.qk_stride = c.heads * c.head_dim + 8;
  t.v_stride = c.heads * c.value_dim + 16;
  const auto fill = [&](int64_t stride, int64_t width) {
    std::vector<Bits> x(t.tokens * stride, kPoison);
    for (int64_t i = 0; i < t.tokens; ++i) {
      for (int64_t j = 0; j < width; ++j) x[i * stride + j] = RandomBits(rng);
    }
    return x;
  };
  t.q = fill(t.qk_stride, c.heads * c.head_dim);
  t.k = fill(t.qk_stride, c.heads * c.head_dim);
  t.v = fill(t.v_stride, c.heads * c.value_dim);
  t.dout = fill(t.v_stride, c.heads * c.value_dim);
  if (c.states) {
    const size_t size = (c.cu_seqlens.size() - 1) * c.heads * c.head_dim * c.value_dim;
    std::normal_distribution<float> normal(0.0f, 3.0f);
    t.initial.resize(size);
    t.dfinal.resize(size);
    for (float& x : t.initial) x = normal(rng);
    for (float& x : t.dfinal) x = normal(rng);
  }
  return t;
}

struct Reference {
  std::vector<double> out, final_state, dq, dk, dv, dinitial;
};

// S_t = lambda S_{t-1} + k_t v_t^T, out_t = S_t^T q_t; G_t = lambda G_{t+1} + q_t dout_t^T with G =
// the final state's gradient after the last token, dq_t = S_t dout_t, dk_t = G_t v_t, dv_t = G_t^T
// k_t.
Reference Compute(const Case& c, const Tensors& t) {
  const int H = c.heads, D = c.head_dim, E = c.value_dim;
  const int64_t B = c.cu_seqlens.size() - 1;
  Reference r;
  r.out.assign(t.tokens * H * E, 0.0);
  r.dv.assign(t.tokens * H * E, 0.0);
  r.dq.assign(t.tokens * H * D, 0.0);
  r.dk.assign(t.tokens * H * D, 0.0);
  r.final_state.assign(B * H * D * E, 0.0);
  r.dinitial.assign(B * H * D * E, 0.0);
  std::vector<double> state(D * E), q(D), k(D), v(E), g(E);
  for (int64_t b = 0; b < B; ++b) {
    for (int h = 0; h < H; ++h) {
      const double lambda = std::exp(-static_cast<double>(c.slopes[h]));
      const int64_t base = (b * H + h) * D * E;
      const auto read = [&](int64_t i) {
        for (int d = 0; d < D; ++d) {
          q[d] = FromBits(t.q[i * t.qk_stride + h * D + d]);
          k[d] = FromBits(t.k[i * t.qk_stride + h * D + d]);
        }
        for (int e = 0; e < E; ++e) {
          v[e] = FromBits(t.v[i * t.v_stride + h * E + e]);
          g[e] = FromBits(t.dout[i * t.v_stride + h * E + e]);
        }
      };
      for (int i = 0; i < D * E; ++i) state[i] = c.states ? t.initial[base + i] : 0.0;
      for (int64_t i = c.cu_seqlens[b]; i < c.cu_seqlens[b + 1]; ++i) {
        read(i);
        for (int d = 0; d < D; ++d) {
          double dq = 0.0;
          for (int e = 0; e < E; ++e) {
            double& x = state[d * E + e];
            x = lambda * x + k[d] * v[e];
            r.out[(i * H + h) * E + e] += x * q[d];
            dq += x * g[e];
          }
          r.dq[(i * H + h) * D + d] = dq;
        }
      }
      std::copy(state.begin(), state.end(), r.final_state.begin() + base);
      for (int i = 0; i < D * E; ++i) state[i] = c.states ? t.dfinal[base + i] : 0.0;
      for (int64_t i = c.cu_seqlens[b + 1] - 1; i >= c.cu_seqlens[b]; --i) {
        read(i);
        for (int d = 0; d < D; ++d) {
          double dk = 0.0;
          for (int e = 0; e < E; ++e) {
            double& x = state[d * E + e];
            x += q[d] * g[e];
            r.dv[(i * H + h) * E + e] += x * k[d];
            dk += x * v[e];
            x *= lambda;
          }
          r.dk[(i * H + h) * D + d] = dk;
        }
      }
      std::copy(state.begin(), state.end(), r.dinitial.begin() + base);
    }
  }
  return r;
}

struct Results {
  std::vector<Bits> out, dq, dk, dv;
  std::vector<float> final_state, dinitial;
  // Of the backward pass in two parts, and of the states alone.
  std::vector<Bits> part_dq, part_dk, part_dv;
  std::vector<float> part_dinitial, own_final, own_dinitial;
};

void RunKernels(const Case& c, const Tensors& t, bool portable, Results& results) {
  const int64_t documents = c.cu_seqlens.size() - 1;
  const LightningPlan plan = PlanLightningAttention(c.cu_seqlens.data(), documents, c.segment_rows);
  const DeviceArray<std::byte> bytes(plan.bytes);
  const DeviceArray<float> slopes(c.slopes);
  const DeviceArray<Bits> q(t.q), k(t.k), v(t.v), dout(t.dout);
  const DeviceArray<Bits> out(t.v.size()), dq(t.q.size()), dk(t.k.size()), dv(t.v.size());
  const DeviceArray<float> initial(t.initial), dfinal(t.dfinal);
  const size_t state_size = documents * c.heads * c.head_dim * c.value_dim;
  const DeviceArray<float> final_apart(state_size), dinitial_apart(state_size);
  const DeviceArray<float> final_in_place(t.initial), dinitial_in_place(t.dfinal);
  const DeviceArray<float>& final_state = c.in_place ? final_in_place : final_apart;
  const DeviceArray<float>& dinitial = c.in_place ? dinitial_in_place : dinitial_apart;
  const DeviceArray<std::byte> workspace(
      std::max(LightningForwardWorkspaceBytes(plan, c.heads, c.head_dim, c.value_dim),
               LightningBackwardWorkspaceBytes(plan, c.heads, c.head_dim, c.value_dim)));
  LightningForwardParams f;
  f.plan = ViewOf(plan, bytes.data());
  f.num_heads = c.heads;
  f.head_dim = c.head_dim;
  f.value_dim = c.value_dim;
  f.slopes = slopes.data();
  f.q = q.data();
  f.k = k.data();
  f.v = v.data();
  f.initial_state = c.states ? initial.data() : nullptr;
  f.out = out.data();
  f.final_state = final_state.data();
  f.q_stride = f.k_stride = t.qk_stride;
  f.v_stride = f.out_stride = t.v_stride;
  f.workspace = workspace.data();
  f.portable = portable;
  if (c.in_place) f.initial_state = final_state.data();
  ASSERT_EQ(LaunchLightningForward(f, nullptr), cudaSuccess);
  if (c.in_place) f.initial_state = initial.data();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  LightningBackwardParams b;
  b.forward = f;
  b.dout = dout.data();
  b.dfinal_state = c.states ? dfinal.data() : nullptr;
  b.dq = dq.data();
  b.dk = dk.data();
  b.dv = dv.data();
  b.dinitial_state = dinitial.data();
  b.dout_stride = b.dv_stride = t.v_stride;
  b.dq_stride = b.dk_stride = t.qk_stride;
  b.workspace = workspace.data();
  if (c.in_place) b.dfinal_state = dinitial.data();
  ASSERT_EQ(LaunchLightningBackward(b, nullptr), cudaSuccess);
  if (c.in_place) b.dfinal_state = dfinal.data();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  results.out = out.Download();
  results.dq = dq.Download();
  results.dk = dk.Download();
  results.dv = dv.Download();
  results.final_state = final_state.Download();
  results.dinitial = dinitial.Download();

  const size_t part_bytes = LightningForwardWorkspaceBytes(plan, c.heads, c.head_dim, c.value_dim);
  const DeviceArray<std::byte> part_workspace(part_bytes);
  const DeviceArray<Bits> part_dq(t.q.size()), part_dk(t.k.size()), part_dv(t.v.size());
  const DeviceArray<float> part_dinitial(state_size), own_final(state_size),
      own_dinitial(state_size);
  LightningBackwardParams part = b;
  part.workspace = part_workspace.data();
  part.forward.q = nullptr;
  part.forward.q_stride = 0;
  part.dfinal_state = nullptr;
  part.dq = part_dq.data();
  part.dk = part.dv = nullptr;
  part.dinitial_state = nullptr;
  ASSERT_EQ(LaunchLightningBackwardQuery(part, nullptr), cudaSuccess);
  part = b;
  part.workspace = part_workspace.data();
  part.forward.initial_state = nullptr;
  part.dq = nullptr;
  part.dk = part_dk.data();
  part.dv = part_dv.data();
  part.dinitial_state = part_dinitial.data();
  ASSERT_EQ(LaunchLightningBackwardKeyValue(part, nullptr), cudaSuccess);
  LightningStateParams s;
  s.plan = f.plan;
  s.num_heads = c.heads;
  s.head_dim = c.head_dim;
  s.value_dim = c.value_dim;
  s.slopes = slopes.data();
  s.k = k.data();
  s.v = v.data();
  s.k_stride = t.qk_stride;
  s.v_stride = t.v_stride;
  s.last_state = own_final.data();
  s.workspace = part_workspace.data();
  s.portable = portable;
  ASSERT_EQ(LaunchLightningStates(s, nullptr), cudaSuccess);
  s.k = q.data();
  s.v = dout.data();
  s.reversed = true;
  s.last_state = own_dinitial.data();
  ASSERT_EQ(LaunchLightningStates(s, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  results.part_dq = part_dq.Download();
  results.part_dk = part_dk.Download();
  results.part_dv = part_dv.Download();
  results.part_dinitial = part_dinitial.Download();
  results.own_final = own_final.Download();
  results.own_dinitial = own_dinitial.Download();
}

constexpr double kBound = 6e-3;

// own: what the states are without those before the documents. errors: of every result.
void CheckKernels(const Case& c, const Tensors& t, const Reference& want, const Reference& own,
                  bool portable, std::vector<double>& errors) {
  SCOPED_TRACE(portable ? "portable kernels" : "this GPU's kernels");
  Results got, again;
  ASSERT_NO_FATAL_FAILURE(RunKernels(c, t, portable, got));
  ASSERT_NO_FATAL_FAILURE(RunKernels(c, t, portable, again));
  EXPECT_EQ(got.out, again.out);
  EXPECT_EQ(got.dq, again.dq);
  EXPECT_EQ(got.dk, again.dk);
  EXPECT_EQ(got.dv, again.dv);
  EXPECT_EQ(got.final_state, again.final_state);
  EXPECT_EQ(got.dinitial, again.dinitial);
  EXPECT_EQ(got.own_final, again.own_final);
  EXPECT_EQ(got.own_dinitial, again.own_dinitial);
  // The parts run the same kernels on the same states.
  EXPECT_EQ(got.part_dq, got.dq);
  EXPECT_EQ(got.part_dk, got.dk);
  EXPECT_EQ(got.part_dv, got.dv);
  EXPECT_EQ(got.part_dinitial, got.dinitial);
  int64_t touched = 0;
  const auto error = [&](const std::vector<Bits>& x, const std::vector<double>& y, int64_t stride,
                         int64_t width) {
    RelativeError e;
    for (int64_t i = 0; i < t.tokens; ++i) {
      for (int64_t j = 0; j < stride; ++j) {
        if (j < width) {
          e.Add(FromBits(x[i * stride + j]), y[i * width + j]);
        } else {
          touched += x[i * stride + j] != kPoison;
        }
      }
    }
    return e.value();
  };
  const int64_t qk = c.heads * c.head_dim, ve = c.heads * c.value_dim;
  const auto state_error = [](const std::vector<float>& x, const std::vector<double>& y) {
    RelativeError e;
    for (size_t i = 0; i < y.size(); ++i) e.Add(x[i], y[i]);
    return e.value();
  };
  errors = {
      error(got.out, want.out, t.v_stride, ve),       error(got.dq, want.dq, t.qk_stride, qk),
      error(got.dk, want.dk, t.qk_stride, qk),        error(got.dv, want.dv, t.v_stride, ve),
      state_error(got.final_state, want.final_state), state_error(got.dinitial, want.dinitial),
      state_error(got.own_final, own.final_state),    state_error(got.own_dinitial, own.dinitial)};
  for (size_t i = 0; i < errors.size(); ++i) EXPECT_LE(errors[i], kBound) << "result " << i;
  EXPECT_EQ(touched, 0);
}

void Check(const Case& c, unsigned seed) {
  SCOPED_TRACE("tokens " + std::to_string(c.cu_seqlens.back()) + " heads " +
               std::to_string(c.heads) + " dims " + std::to_string(c.head_dim) + "/" +
               std::to_string(c.value_dim) + " segments of " + std::to_string(c.segment_rows) +
               " states " + std::to_string(c.states));
  std::mt19937 rng(seed);
  const Tensors t = RandomTensors(c, rng);
  const Reference want = Compute(c, t);
  Case from_zero = c;
  from_zero.states = false;
  const Reference own = c.states ? Compute(from_zero, t) : want;
  std::vector<double> errors, portable_errors;
  ASSERT_NO_FATAL_FAILURE(CheckKernels(c, t, want, own, false, errors));
  ASSERT_NO_FATAL_FAILURE(CheckKernels(c, t, want, own, true, portable_errors));
  // Kernels of one GPU are as exact as those of any.
  for (size_t i = 0; i < errors.size(); ++i) {
    EXPECT_LE(errors[i], 1.02 * portable_errors[i] + 1e-6) << "result " << i;
  }
}

class LightningAttentionCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(LightningAttentionCudaTest, OneDocumentOfAnyLength) {
  unsigned seed = 1;
  for (const int64_t n : {1, 2, 63, 64, 65, 127, 128, 129, 300, 515}) {
    Check({{0, n}, 2, 128, 128, 128, {0.7f, 0.01f}, n % 2 == 1}, seed++);
  }
}

TEST_F(LightningAttentionCudaTest, EveryHeadSize) {
  unsigned seed = 100;
  for (const int d : {8, 64, 96, 128, 192, 256}) {
    Check({{0, 200}, 1, d, d, 64, {0.1f}, true}, seed++);
  }
  Check({{0, 200}, 2, 256, 128, 64, {0.1f, 0.02f}, true}, seed++);
  Check({{0, 200}, 2, 64, 128, 128, {0.1f, 0.02f}, true}, seed++);
  Check({{0, 200}, 1, 128, 96, 64, {0.1f}, true}, seed++);
}

TEST_F(LightningAttentionCudaTest, PackedDocuments) {
  for (const bool states : {false, true}) {
    Check({{0, 0, 1, 70, 70, 333, 461, 461}, 3, 64, 64, 64, {0.8409f, 0.0625f, 0.0f}, states}, 200);
    Check({{0, 5, 9, 12, 200, 456}, 2, 128, 128, 128, {0.25f, 0.004f}, states}, 201);
  }
}

TEST_F(LightningAttentionCudaTest, LongerSegments) {
  Check({{0, 1000}, 2, 128, 128, 384, {0.03f, 0.0f}, true}, 210);
  Check({{0, 1024, 1300, 1301}, 1, 128, 128, 256, {0.002f}, false}, 211);
  // Most of a segment has decayed to nothing at its end.
  Check({{0, 2100}, 3, 128, 128, 1024, {0.7f, 0.25f, 60.0f}, true}, 212);
}

// Tiles are used again and again, by more blocks than run at a time.
TEST_F(LightningAttentionCudaTest, ManyChunksASegment) {
  const Case c = {{0, 9001, 24000}, 4, 128, 128, 2048, {0.4f, 0.05f, 0.004f, 1e-5f}, false};
  std::mt19937 rng(215);
  const Tensors t = RandomTensors(c, rng);
  Results want;
  ASSERT_NO_FATAL_FAILURE(RunKernels(c, t, true, want));
  Results first;
  for (int run = 0; run < 4; ++run) {
    Results got;
    ASSERT_NO_FATAL_FAILURE(RunKernels(c, t, false, got));
    if (run == 0) first = got;
    const std::pair<const std::vector<Bits> Results::*, const char*> tensors[] = {
        {&Results::out, "out"}, {&Results::dq, "dq"}, {&Results::dk, "dk"}, {&Results::dv, "dv"}};
    for (const auto& [tensor, name] : tensors) {
      EXPECT_TRUE(got.*tensor == first.*tensor) << name << " in run " << run;
    }
    if (run > 0) continue;
    const int64_t width = c.heads * 128;
    for (const auto& [tensor, name] : tensors) {
      RelativeError error;
      const int64_t stride = static_cast<int64_t>((got.*tensor).size()) / t.tokens;
      for (int64_t i = 0; i < t.tokens; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          error.Add(FromBits((got.*tensor)[i * stride + j]),
                    FromBits((want.*tensor)[i * stride + j]));
        }
      }
      EXPECT_LE(error.value(), kBound) << name;
    }
  }
}

TEST_F(LightningAttentionCudaTest, ManyShortDocuments) {
  Case c = {{0}, 2, 128, 128, 256, {0.3f, 0.01f}, true};
  std::mt19937 rng(220);
  for (int i = 0; i < 60; ++i) c.cu_seqlens.push_back(c.cu_seqlens.back() + rng() % 20);
  Check(c, 221);
}

TEST_F(LightningAttentionCudaTest, StatesInPlace) {
  Check({{0, 0, 300, 650, 700}, 2, 128, 128, 128, {0.05f, 0.9f}, true, true}, 230);
  Check({{0, 0, 300, 350}, 2, 64, 64, 128, {0.05f, 0.9f}, true, true}, 231);
}

// What lies in the rows of other documents is never multiplied.
TEST_F(LightningAttentionCudaTest, DocumentsBesideNaN) {
  const Case c = {{0, 150, 340, 500}, 1, 128, 128, 128, {0.02f}, false};
  std::mt19937 rng(240);
  const Tensors clean = RandomTensors(c, rng);
  Tensors t = clean;
  for (std::vector<Bits>* x : {&t.q, &t.k, &t.v, &t.dout}) {
    const size_t stride = x->size() / t.tokens;
    std::fill_n(x->begin(), 150 * stride, kPoison);
    std::fill(x->begin() + 340 * stride, x->end(), kPoison);
  }
  for (const bool portable : {false, true}) {
    SCOPED_TRACE(portable ? "portable kernels" : "this GPU's kernels");
    Results want, got;
    ASSERT_NO_FATAL_FAILURE(RunKernels(c, clean, portable, want));
    ASSERT_NO_FATAL_FAILURE(RunKernels(c, t, portable, got));
    const auto middle = [&](const std::vector<Bits>& x) {
      const size_t stride = x.size() / t.tokens;
      return std::vector<Bits>(x.begin() + 150 * stride, x.begin() + 340 * stride);
    };
    EXPECT_EQ(middle(got.out), middle(want.out));
    EXPECT_EQ(middle(got.dq), middle(want.dq));
    EXPECT_EQ(middle(got.dk), middle(want.dk));
    EXPECT_EQ(middle(got.dv), middle(want.dv));
  }
}

TEST_F(LightningAttentionCudaTest, DecayFromNoneToTotal) {
  Check({{0, 300}, 5, 128, 128, 128, {0.0f, 8.4e-6f, 0.0039f, 4.0f, 60.0f}, true}, 301);
  Check({{0, 300}, 5, 64, 64, 128, {0.0f, 8.4e-6f, 0.0039f, 4.0f, 60.0f}, true}, 300);
}

TEST_F(LightningAttentionCudaTest, CombinedStates) {
  std::mt19937 rng(500);
  const std::vector<float> slopes = {0.0f, 0.01f, 3.0f, INFINITY};
  // Source and distance of the terms of five targets, one of them without any.
  const std::vector<StateSource> terms = {{2, 0.0f}, {0, 7.0f},   {1, 1.0f}, {1, 1.0f},
                                          {2, 1e9f}, {3, 100.0f}, {0, 0.0f}, {3, 33.0f}};
  const std::vector<int32_t> begins = {0, 2, 2, 3, 6, 8};
  for (const int64_t size : {4, 64 * 64, 24 * 40, 128 * 256}) {
    std::vector<float> sources(4 * slopes.size() * size);
    for (float& x : sources) x = std::normal_distribution<float>()(rng);
    const DeviceArray<float> slopes_d(slopes), sources_d(sources),
        targets(5 * slopes.size() * static_cast<size_t>(size));
    const DeviceArray<StateSource> terms_d(terms);
    const DeviceArray<int32_t> begins_d(begins);
    CombineStatesParams p;
    p.terms = terms_d.data();
    p.begins = begins_d.data();
    p.slopes = slopes_d.data();
    p.sources = sources_d.data();
    p.targets = targets.data();
    p.num_targets = 5;
    p.num_heads = 4;
    p.size = size;
    ASSERT_EQ(LaunchCombineStates(p, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<float> got = targets.Download();
    RelativeError error;
    for (int64_t t = 0; t < 5; ++t) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t i = 0; i < size; ++i) {
          double want = 0.0;
          for (int32_t n = begins[t]; n < begins[t + 1]; ++n) {
            const double factor =
                terms[n].distance == 0.0f
                    ? 1.0
                    : std::exp(-static_cast<double>(slopes[h]) * terms[n].distance);
            want += factor * sources[(terms[n].source * 4 + h) * size + i];
          }
          error.Add(got[(t * 4 + h) * size + i], want);
        }
      }
    }
    EXPECT_LE(error.value(), 1e-6) << size;
    p.num_targets = 0;
    EXPECT_EQ(LaunchCombineStates(p, nullptr), cudaSuccess);
  }
}

TEST_F(LightningAttentionCudaTest, NoTokens) {
  Check({{0, 0, 0}, 2, 64, 64, 128, {0.1f, 0.2f}, true}, 400);
}

}  // namespace
}  // namespace evenkeel
