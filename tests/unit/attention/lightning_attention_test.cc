#include "attention/lightning_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/unit/attention/lightning_reference.h"

namespace evenkeel {
namespace {

constexpr double kSlopes[] = {0.84, 0.25, 0.0039, 8.4e-6, 0.0};

std::vector<double> AllSlopes() {
  return {std::begin(kSlopes), std::end(kSlopes)};
}

template <typename A, typename B>
double WorstError(const LightningResult<A>& a, const LightningResult<B>& b) {
  return std::max({RelativeError(a.out, b.out), RelativeError(a.final_state, b.final_state),
                   RelativeError(a.dq, b.dq), RelativeError(a.dk, b.dk), RelativeError(a.dv, b.dv),
                   RelativeError(a.dinitial_state, b.dinitial_state)});
}

template <typename T>
void ExpectIdentical(const LightningResult<T>& a, const LightningResult<T>& b) {
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.final_state, b.final_state);
  EXPECT_EQ(a.dq, b.dq);
  EXPECT_EQ(a.dk, b.dk);
  EXPECT_EQ(a.dv, b.dv);
  EXPECT_EQ(a.dinitial_state, b.dinitial_state);
}

struct Case {
  int64_t length, key_size, value_size;
  bool with_states;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  // Around one, two and four chunks of 32, and the documents that go token by token.
  for (int64_t n : {0, 1, 2, 4, 5, 31, 32, 33, 47, 63, 64, 65, 81, 97, 127, 128, 129, 273}) {
    cases.push_back({n, 32, 32, true});
    cases.push_back({n, 64, 48, false});
    cases.push_back({n, 17, 19, true});
  }
  for (int64_t n : {1, 31, 32, 33, 81, 127}) {
    cases.push_back({n, 128, 64, true});
    cases.push_back({n, 256, 128, false});
  }
  cases.push_back({131, 1, 1, true});
  cases.push_back({131, 3, 70, true});
  cases.push_back({131, 96, 5, true});
  cases.push_back({131, 192, 33, true});
  return cases;
}

TEST(LightningAttentionTest, EqualsTheRecurrenceInFloat64) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(absl::StrCat("n ", c.length, " D ", c.key_size, " E ", c.value_size));
    const auto p = MakeLightningProblem<double>({0, c.length}, AllSlopes(), c.key_size,
                                                c.value_size, c.with_states, 11);
    EXPECT_LT(WorstError(RunLightning(p), LightningReference(p)), 1e-12);
  }
}

TEST(LightningAttentionTest, Float32IsAsGoodAsTheRecurrence) {
  for (const Case& c : Cases()) {
    if (c.length == 0) continue;
    SCOPED_TRACE(absl::StrCat("n ", c.length, " D ", c.key_size, " E ", c.value_size));
    const auto p = MakeLightningProblem<float>({0, c.length}, AllSlopes(), c.key_size, c.value_size,
                                               c.with_states, 12);
    LightningProblem<double> exact;
    exact.cu_seqlens = p.cu_seqlens;
    exact.slopes = p.slopes;
    exact.key_size = p.key_size;
    exact.value_size = p.value_size;
    const auto widen = [](const std::vector<float>& x) {
      return std::vector<double>(x.begin(), x.end());
    };
    exact.q = widen(p.q);
    exact.k = widen(p.k);
    exact.v = widen(p.v);
    exact.dout = widen(p.dout);
    exact.initial_state = widen(p.initial_state);
    exact.dfinal_state = widen(p.dfinal_state);
    const auto truth = LightningReference(exact);
    const auto naive = LightningReference(p);
    const auto ours = RunLightning(p);
    constexpr double kEpsilon = 1.2e-7;
    EXPECT_LE(RelativeError(ours.out, truth.out),
              2 * RelativeError(naive.out, truth.out) + kEpsilon);
    EXPECT_LE(RelativeError(ours.final_state, truth.final_state),
              2 * RelativeError(naive.final_state, truth.final_state) + kEpsilon);
    EXPECT_LE(RelativeError(ours.dq, truth.dq), 2 * RelativeError(naive.dq, truth.dq) + kEpsilon);
    EXPECT_LE(RelativeError(ours.dk, truth.dk), 2 * RelativeError(naive.dk, truth.dk) + kEpsilon);
    EXPECT_LE(RelativeError(ours.dv, truth.dv), 2 * RelativeError(naive.dv, truth.dv) + kEpsilon);
    EXPECT_LE(RelativeError(ours.dinitial_state, truth.dinitial_state),
              2 * RelativeError(naive.dinitial_state, truth.dinitial_state) + kEpsilon);
  }
}

// A long decay must not drift: the state after 5000 tokens.
TEST(LightningAttentionTest, LongDocumentsInFloat64) {
  const auto p = MakeLightningProblem<double>({0, 5003}, {0.84, 8.4e-6, 0.0}, 24, 40, true, 13);
  EXPECT_LT(WorstError(RunLightning(p, 2), LightningReference(p)), 1e-12);
}

// Rows [begin, end) of [T, H, size].
template <typename T>
std::vector<T> RowsOf(const std::vector<T>& x, int64_t begin, int64_t end, int64_t row) {
  return {x.begin() + begin * row, x.begin() + end * row};
}

template <typename T>
LightningProblem<T> PartOf(const LightningProblem<T>& p, int64_t begin, int64_t end) {
  LightningProblem<T> part;
  const int64_t key_row = p.num_heads() * p.key_size, value_row = p.num_heads() * p.value_size;
  part.cu_seqlens = {0, end - begin};
  part.slopes = p.slopes;
  part.key_size = p.key_size;
  part.value_size = p.value_size;
  part.q = RowsOf(p.q, begin, end, key_row);
  part.k = RowsOf(p.k, begin, end, key_row);
  part.v = RowsOf(p.v, begin, end, value_row);
  part.dout = RowsOf(p.dout, begin, end, value_row);
  return part;
}

TEST(LightningAttentionTest, SplitRunEqualsTheWhole) {
  for (int64_t cut : {1, 31, 32, 100, 299, 300}) {
    SCOPED_TRACE(cut);
    const auto p = MakeLightningProblem<double>({0, 300}, AllSlopes(), 20, 36, true, 14);
    const auto whole = RunLightning(p);
    auto left = PartOf(p, 0, cut), right = PartOf(p, cut, 300);
    left.initial_state = p.initial_state;
    right.initial_state = RunLightning(left).final_state;
    right.dfinal_state = p.dfinal_state;
    const auto right_result = RunLightning(right);
    left.dfinal_state = right_result.dinitial_state;
    const auto left_result = RunLightning(left);
    const auto joined = [](std::vector<double> a, const std::vector<double>& b) {
      a.insert(a.end(), b.begin(), b.end());
      return a;
    };
    EXPECT_LT(RelativeError(joined(left_result.out, right_result.out), whole.out), 1e-12);
    EXPECT_LT(RelativeError(right_result.final_state, whole.final_state), 1e-12);
    EXPECT_LT(RelativeError(joined(left_result.dq, right_result.dq), whole.dq), 1e-12);
    EXPECT_LT(RelativeError(joined(left_result.dk, right_result.dk), whole.dk), 1e-12);
    EXPECT_LT(RelativeError(joined(left_result.dv, right_result.dv), whole.dv), 1e-12);
    EXPECT_LT(RelativeError(left_result.dinitial_state, whole.dinitial_state), 1e-12);
  }
}

// loss = <out, dout> + <final_state, dfinal_state>
double Loss(const LightningProblem<double>& p) {
  const auto r = RunLightning(p);
  double loss = 0;
  for (size_t i = 0; i < r.out.size(); ++i) loss += r.out[i] * p.dout[i];
  for (size_t i = 0; i < r.final_state.size(); ++i) loss += r.final_state[i] * p.dfinal_state[i];
  return loss;
}

TEST(LightningAttentionTest, GradientsEqualFiniteDifferences) {
  auto p = MakeLightningProblem<double>({0, 70, 70, 73}, {0.84, 0.01}, 5, 3, true, 15);
  const auto r = RunLightning(p);
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient,
                         const char* name) {
    // The loss is linear in each of the four inputs, so a wide step costs no accuracy.
    constexpr double kStep = 0.5;
    double error = 0;
    for (size_t i = 0; i < x.size(); i += 7) {
      const double saved = x[i];
      x[i] = saved + kStep;
      const double above = Loss(p);
      x[i] = saved - kStep;
      const double below = Loss(p);
      x[i] = saved;
      error = std::max(error, std::abs((above - below) / (2 * kStep) - gradient[i]));
    }
    EXPECT_LT(error, 1e-6) << name;
  };
  check(p.q, r.dq, "dq");
  check(p.k, r.dk, "dk");
  check(p.v, r.dv, "dv");
  check(p.initial_state, r.dinitial_state, "dinitial_state");
}

TEST(LightningAttentionTest, PackedDocumentsEqualEachAlone) {
  const std::vector<int64_t> cu_seqlens = {0, 0, 1, 200, 200, 203, 267, 400, 400};
  const auto p = MakeLightningProblem<double>(cu_seqlens, AllSlopes(), 24, 10, true, 16);
  const auto packed = RunLightning(p);
  const int64_t state = p.num_heads() * p.key_size * p.value_size;
  for (size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    SCOPED_TRACE(b);
    const int64_t begin = cu_seqlens[b], end = cu_seqlens[b + 1], at = static_cast<int64_t>(b);
    const int64_t key_row = p.num_heads() * p.key_size, value_row = p.num_heads() * p.value_size;
    auto alone = PartOf(p, begin, end);
    alone.initial_state = RowsOf(p.initial_state, at, at + 1, state);
    alone.dfinal_state = RowsOf(p.dfinal_state, at, at + 1, state);
    const auto r = RunLightning(alone);
    EXPECT_LT(RelativeError(RowsOf(packed.out, begin, end, value_row), r.out), 1e-12);
    EXPECT_LT(RelativeError(RowsOf(packed.dq, begin, end, key_row), r.dq), 1e-12);
    EXPECT_LT(RelativeError(RowsOf(packed.dk, begin, end, key_row), r.dk), 1e-12);
    EXPECT_LT(RelativeError(RowsOf(packed.dv, begin, end, value_row), r.dv), 1e-12);
    EXPECT_LT(RelativeError(RowsOf(packed.final_state, at, at + 1, state), r.final_state), 1e-12);
    EXPECT_LT(RelativeError(RowsOf(packed.dinitial_state, at, at + 1, state), r.dinitial_state),
              1e-12);
    // A document without tokens passes its state and the gradient of it on.
    if (begin == end) {
      EXPECT_EQ(RowsOf(packed.final_state, at, at + 1, state), alone.initial_state);
      EXPECT_EQ(RowsOf(packed.dinitial_state, at, at + 1, state), alone.dfinal_state);
    }
  }
}

TEST(LightningAttentionTest, DocumentsDoNotTouchEachOther) {
  const std::vector<int64_t> cu_seqlens = {0, 150, 153, 290};
  auto p = MakeLightningProblem<float>(cu_seqlens, {0.25, 0.0}, 16, 16, false, 17);
  const auto before = RunLightning(p);
  for (int64_t t = 150; t < 153; ++t) {
    for (int64_t i = 0; i < 32; ++i) {
      const auto at = static_cast<size_t>(t * 32 + i);
      p.q[at] = p.k[at] = p.v[at] = p.dout[at] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  const auto after = RunLightning(p);
  for (const auto& [x, y] : {std::pair(&before.out, &after.out), std::pair(&before.dq, &after.dq),
                             std::pair(&before.dk, &after.dk), std::pair(&before.dv, &after.dv)}) {
    EXPECT_EQ(RowsOf(*x, 0, 150, 32), RowsOf(*y, 0, 150, 32));
    EXPECT_EQ(RowsOf(*x, 153, 290, 32), RowsOf(*y, 153, 290, 32));
    for (float value : RowsOf(*y, 150, 153, 32)) EXPECT_TRUE(std::isnan(value));
  }
}

// Few heads and one long document are cut along the sequence, many along heads: the bits agree.
TEST(LightningAttentionTest, ThreadsDoNotChangeTheBits) {
  struct Packing {
    std::vector<int64_t> cu_seqlens;
    std::vector<double> slopes;
    bool with_states;
  };
  const std::vector<Packing> packings = {{{0, 3001}, {0.01}, true},
                                         {{0, 3001}, {0.01}, false},
                                         {{0, 2000, 2300, 2301}, {0.5, 0.001}, true},
                                         {{0, 300, 600, 601, 1000}, {0.5, 0.1, 0.0, 0.7}, false}};
  for (const Packing& packing : packings) {
    SCOPED_TRACE(absl::StrJoin(packing.cu_seqlens, " "));
    const auto p = MakeLightningProblem<float>(packing.cu_seqlens, packing.slopes, 24, 40,
                                               packing.with_states, 18);
    const auto one = RunLightning(p, 1);
    for (int threads : {2, 3}) {
      SCOPED_TRACE(threads);
      ExpectIdentical(RunLightning(p, threads), one);
    }
  }
}

TEST(LightningAttentionTest, NanPropagates) {
  for (int64_t n : {3, 200}) {
    auto p = MakeLightningProblem<float>({0, n}, {0.25}, 16, 16, false, 19);
    p.v[static_cast<size_t>(1 * 16 + 3)] = std::numeric_limits<float>::quiet_NaN();
    const auto r = RunLightning(p);
    for (int64_t t = 1; t < n; ++t) EXPECT_TRUE(std::isnan(r.out[static_cast<size_t>(t * 16 + 3)]));
    EXPECT_TRUE(std::isnan(r.final_state[3]));
    EXPECT_TRUE(std::isnan(r.dk[16]));
  }
}

// Large slopes and long chunks: every power is of a non-negative exponent, so nothing overflows.
TEST(LightningAttentionTest, SteepDecayStaysFinite) {
  for (double slope : {20.0, 1e3, 1e300, std::numeric_limits<double>::infinity()}) {
    auto p = MakeLightningProblem<float>({0, 300}, {slope}, 16, 16, true, 20);
    const auto r = RunLightning(p);
    for (const auto* x : {&r.out, &r.final_state, &r.dq, &r.dk, &r.dv, &r.dinitial_state}) {
      for (float value : *x) ASSERT_TRUE(std::isfinite(value)) << slope;
    }
  }
}

// A decode loop: one token a call, the state updated in place, q, k and v columns of one matrix.
TEST(LightningAttentionTest, DecodesInPlaceFromStridedRows) {
  constexpr int64_t kTokens = 90, kHeads = 2, kSize = 20, kDocuments = 3;
  const std::vector<double> slopes = {0.25, 0.01};
  MemoryTracker tracker;
  auto arena = Arena::Create(int64_t{1} << 26, tracker);
  ASSERT_TRUE(arena.ok());
  ThreadPool pool(2);
  const OpContext context = {pool, *arena, DType::kF64};
  const int64_t width = 3 * kHeads * kSize;
  const auto qkv = NormalValues<double>(kDocuments * kTokens * width, 21, 0);
  const std::vector<int64_t> whole = {0, kTokens, 2 * kTokens, 3 * kTokens};
  const std::vector<int64_t> step = {0, 1, 2, 3};
  std::vector<double> out(kDocuments * kTokens * kHeads * kSize), state(kDocuments * kHeads * 400);
  std::vector<double> step_out(kDocuments * kHeads * kSize), step_state(state.size());
  const ConstTensorView rows(qkv.data(), DType::kF64, {kDocuments * kTokens, width});
  const auto columns = [&](const ConstTensorView& x, int64_t i) {
    return x.Columns(i * kHeads * kSize, (i + 1) * kHeads * kSize).SplitHeads(kHeads);
  };
  const Shape states = {kDocuments, kHeads, kSize, kSize};
  LightningAttentionForward(
      context, whole, slopes, columns(rows, 0), columns(rows, 1), columns(rows, 2), {},
      TensorView(out.data(), DType::kF64, {kDocuments * kTokens, kHeads, kSize}),
      TensorView(state.data(), DType::kF64, states));
  const TensorView in_place(step_state.data(), DType::kF64, states);
  double error = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    ConstTensorView now = rows;  // row t of each document: rows kTokens apart
    now.data = qkv.data() + t * width;
    now.shape.dims[0] = kDocuments;
    now.strides[0] = kTokens * width;
    LightningAttentionForward(
        context, step, slopes, columns(now, 0), columns(now, 1), columns(now, 2), in_place,
        TensorView(step_out.data(), DType::kF64, {kDocuments, kHeads, kSize}), in_place);
    for (int64_t b = 0; b < kDocuments; ++b) {
      for (int64_t i = 0; i < kHeads * kSize; ++i) {
        error = std::max(
            error, std::abs(step_out[static_cast<size_t>(b * kHeads * kSize + i)] -
                            out[static_cast<size_t>((b * kTokens + t) * kHeads * kSize + i)]));
      }
    }
  }
  EXPECT_LT(error, 1e-11);
  EXPECT_LT(RelativeError(step_state, state), 1e-12);
}

// Scratch is linear in threads and state size and does not grow with the sequence.
TEST(LightningAttentionTest, ScratchDoesNotGrowWithLength) {
  const auto peak = [](int64_t tokens) {
    MemoryTracker tracker;
    auto arena = Arena::Create(int64_t{1} << 28, tracker);
    EK_CHECK(arena.ok());
    ThreadPool pool(2);
    const OpContext context = {pool, *arena, DType::kF32};
    const auto x = NormalValues<float>(tokens * 32, 22, 0);
    std::vector<float> out(x.size());
    const ConstTensorView rows(x.data(), DType::kF32, {tokens, 1, 32});
    const TensorView result(out.data(), DType::kF32, {tokens, 1, 32});
    const std::vector<int64_t> cu_seqlens = {0, tokens};
    const std::vector<double> slopes = {0.1};
    LightningAttentionForward(context, cu_seqlens, slopes, rows, rows, rows, {}, result, {});
    return tracker.peak_total();
  };
  EXPECT_EQ(peak(4096), peak(32768));
}

TEST(TransNormerSlopesTest, EqualThePublishedValues) {
  const auto base = [](int64_t heads) { return TransNormerSlopes(heads, 0, 1); };
  struct Value {
    int64_t heads, head;
    double slope;
  };
  const Value values[] = {
      {8, 0, 0.5},     {8, 7, 0.00390625},   {16, 0, 0.70711}, {16, 15, 0.00390625},
      {32, 0, 0.8409}, {32, 31, 0.00390625}, {20, 0, 0.70711}, {20, 15, 0.00390625},
      {20, 16, .8409}, {20, 17, .5946},      {20, 18, .4204},  {20, 19, .2973},
      {40, 0, 0.8409}, {40, 31, 0.00390625}, {40, 38, 0.3242}, {40, 39, 0.2726},
  };
  for (const Value& value : values) {
    const auto slopes = base(value.heads);
    ASSERT_EQ(static_cast<int64_t>(slopes.size()), value.heads);
    EXPECT_NEAR(slopes[static_cast<size_t>(value.head)], value.slope * (1 + 1e-5), 5e-5)
        << value.heads << " heads, head " << value.head;
  }
}

TEST(TransNormerSlopesTest, FallWithDepthToAlmostNothing) {
  const auto first = TransNormerSlopes(8, 0, 24), middle = TransNormerSlopes(8, 12, 24),
             last = TransNormerSlopes(8, 23, 24);
  for (size_t h = 0; h < 8; ++h) {
    const double slope = std::pow(2.0, -static_cast<double>(h + 1));
    EXPECT_DOUBLE_EQ(first[h], slope * (1 + 1e-5));
    EXPECT_DOUBLE_EQ(middle[h], slope * (1 - 12.0 / 23 + 1e-5));
    EXPECT_DOUBLE_EQ(last[h], slope * (1 - 1.0 + 1e-5));
  }
}

}  // namespace
}  // namespace evenkeel
