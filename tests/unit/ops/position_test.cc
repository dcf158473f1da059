#include "runtime/ops/position.h"

#include "tests/support/finite_difference.h"
#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

// Expected values are those of ROPE_INIT_FUNCTIONS of Hugging Face transformers 5, which computes
// in float32: 1e-6 is its rounding.
struct FrequencyCase {
  const char* name;
  RopeConfig config;
  int64_t head_dim;
  double attention_factor;
  std::vector<std::pair<size_t, double>> frequencies;  // index, value
};

const std::vector<FrequencyCase>& FrequencyCases() {
  static const std::vector<FrequencyCase> cases = {
      {"none", {.theta = 10000}, 16, 1, {{0, 1}, {1, 0.316227766}, {4, 0.01}, {7, 3.16227766e-4}}},
      {"linear",
       {.theta = 10000, .scaling = RopeScalingKind::kLinear, .factor = 4},
       16,
       1,
       {{0, 0.25}, {1, 0.079056941}, {3, 0.00790569466}, {7, 7.90569466e-05}}},
      {"llama3 8",
       {.theta = 500000, .scaling = RopeScalingKind::kLlama3, .factor = 8},
       64,
       1,
       {{0, 1},
        {13, 0.00483942125},
        {14, 0.00321144611},
        {15, 0.00137189368},
        {16, 0.000524846022},
        {17, 0.000178507791},
        {18, 7.78465546e-05},
        {31, 3.7673226e-07}}},
      {"llama3 32",
       {.theta = 500000, .scaling = RopeScalingKind::kLlama3, .factor = 32},
       128,
       1,
       {{28, 0.00321144611},
        {29, 0.00211840682},
        {32, 0.000429556705},
        {34, 9.70828623e-05},
        {35, 2.38905304e-05},
        {63, 7.67231469e-08}}},
      {"yarn 16",
       {.theta = 10000,
        .scaling = RopeScalingKind::kYarn,
        .factor = 16,
        .original_max_position_embeddings = 4096},
       64,
       1.2772588722239782,
       {{0, 1},
        {10, 0.0562341288},
        {11, 0.039128568},
        {15, 0.00852684397},
        {22, 0.000239383779},
        {23, 8.33450904e-05},
        {31, 8.3345094e-06}}},
      {"yarn 4",
       {.theta = 1000000,
        .scaling = RopeScalingKind::kYarn,
        .factor = 4,
        .original_max_position_embeddings = 32768},
       128,
       1.138629436111989,
       {{23, 0.00697830599},
        {24, 0.00537532149},
        {39, 6.4903943e-05},
        {40, 4.44569851e-05},
        {63, 3.10234441e-07}}},
      {"yarn with all fields",
       {.theta = 100,
        .scaling = RopeScalingKind::kYarn,
        .factor = 2,
        .original_max_position_embeddings = 64,
        .beta_fast = 8,
        .beta_slow = 2,
        .attention_factor = 1.25},
       16,
       1.25,
       {{0, 1},
        {1, 0.468617767},
        {2, 0.210818499},
        {3, 0.0889139697},
        {4, 0.05},
        {7, 0.00889139716}}},
      {"yarn with a ramp below zero",
       {.theta = 10000,
        .scaling = RopeScalingKind::kYarn,
        .factor = 2,
        .original_max_position_embeddings = 4},
       16,
       1.0693147180559945,
       {{0, 1}, {1, 0.158113882}, {2, 0.05}, {7, 1.58113893e-4}}},
      {"yarn without stretching",
       {.theta = 10000,
        .scaling = RopeScalingKind::kYarn,
        .factor = 1,
        .original_max_position_embeddings = 4096},
       16,
       1,
       {{0, 1}, {7, 3.16227766e-4}}},
  };
  return cases;
}

TEST(RopeTest, FrequenciesMatchHuggingFace) {
  for (const auto& test : FrequencyCases()) {
    SCOPED_TRACE(test.name);
    const auto frequencies = RopeInverseFrequencies(test.config, test.head_dim);
    ASSERT_EQ(static_cast<int64_t>(frequencies.size()), test.head_dim / 2);
    for (const auto& [j, expected] : test.frequencies) {
      EXPECT_NEAR(frequencies[j] / expected, 1, 1e-6) << j;
    }
    EXPECT_NEAR(RopeAttentionFactor(test.config), test.attention_factor, 1e-15);
  }
}

TEST(RopeTest, TableIsExactAtAnyPosition) {
  OpRunner runner(2);
  const std::vector<int64_t> positions = {0, 1, 2, 77, 4096, 1000003, 0, 1};
  const std::vector<double> frequencies = {1, 0.3, 1e-4};
  std::vector<float> cos(24), sin(24);
  RopeTable(runner.context(), positions, frequencies, 1.25, ViewOf(cos, {8, 3}),
            ViewOf(sin, {8, 3}));
  for (size_t t = 0; t < 8; ++t) {
    for (size_t j = 0; j < 3; ++j) {
      const long double angle = static_cast<long double>(positions[t]) * frequencies[j];
      EXPECT_NEAR(cos[3 * t + j], 1.25L * std::cos(angle), 1e-7) << t << " " << j;
      EXPECT_NEAR(sin[3 * t + j], 1.25L * std::sin(angle), 1e-7) << t << " " << j;
    }
  }
}

struct RopeTables {
  RopeTables(const OpContext& context, int64_t tokens, int64_t half)
      : cos(static_cast<size_t>(tokens * half)), sin(cos.size()), shape({tokens, half}) {
    std::vector<int64_t> positions(static_cast<size_t>(tokens));
    for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int64_t>(3 * t % 101);
    RopeTable(context, positions, RopeInverseFrequencies({}, 2 * half), 1, ViewOf(cos, shape),
              ViewOf(sin, shape));
  }
  std::vector<double> cos, sin;
  Shape shape;
};

TEST(RopeTest, RotatesPairsOfAStridedView) {
  OpRunner runner(2);
  for (int64_t half : {1, 8, 19}) {
    for (int64_t tokens : {0, 1, 133}) {
      const int64_t heads = 3, size = 2 * half, width = heads * size + 5;
      const RopeTables table(runner.context(), tokens, half);
      auto x = RandomNormal(tokens * width, 1);
      auto expected = x;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t j = 0; j < half; ++j) {
            const auto at = static_cast<size_t>(t * width + 2 + h * size + j);
            const auto pair = at + static_cast<size_t>(half);
            const double c = table.cos[static_cast<size_t>(t * half + j)];
            const double s = table.sin[static_cast<size_t>(t * half + j)];
            expected[at] = x[at] * c - x[pair] * s;
            expected[pair] = x[pair] * c + x[at] * s;
          }
        }
      }
      const auto before = x;
      const auto view = ColumnsOf(x, tokens, width, 2, 2 + heads * size).SplitHeads(heads);
      ApplyRope(runner.context(), ViewOf(table.cos, table.shape), ViewOf(table.sin, table.shape),
                false, view);
      EXPECT_LT(MaxError(x, expected), 1e-14);
      ApplyRope(runner.context(), ViewOf(table.cos, table.shape), ViewOf(table.sin, table.shape),
                true, view);
      EXPECT_LT(MaxError(x, before), 1e-14);  // a rotation's transpose is its inverse
    }
  }
}

TEST(RopeTest, InverseIsTheBackwardPass) {
  OpRunner runner(2);
  const OpContext& context = runner.context();
  const Shape shape = {7, 2, 10};
  const RopeTables table(context, 7, 5);
  auto x = RandomNormal(140, 1);
  const auto dy = RandomNormal(140, 2);
  auto dx = dy;
  const auto cos = ViewOf(table.cos, table.shape), sin = ViewOf(table.sin, table.shape);
  ApplyRope(context, cos, sin, true, ViewOf(dx, shape));
  const auto loss = [&] {
    auto y = x;
    ApplyRope(context, cos, sin, false, ViewOf(y, shape));
    return Dot(y, dy);
  };
  EXPECT_LT(MaxGradientError(loss, x.data(), dx.data(), 140, 20, 3), 1e-6);
}

// Documents laid end to end: positions restart, and need not be consecutive.
std::vector<int64_t> PackedPositions(int64_t tokens) {
  std::vector<int64_t> positions;
  for (int64_t length : {40, 3, 1, 200}) {
    for (int64_t p = 0; p < length; ++p) positions.push_back(p);
  }
  for (int64_t p = 1000; static_cast<int64_t>(positions.size()) < tokens; p += 7) {
    positions.push_back(p);
  }
  positions.resize(static_cast<size_t>(tokens));
  return positions;
}

template <typename T>
void CheckLrpeForward(double tolerance) {
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t tokens : {0, 1, 300}) {
    for (int64_t size : {1, 16, 75}) {
      const int64_t heads = 2;
      const auto x = RandomNormal<T>(tokens * heads * size, 1);
      const auto theta = RandomNormal<T>(heads * size, 2, 0.1);
      const auto positions = PackedPositions(tokens);
      std::vector<T> y(2 * x.size());
      LrpeForward(runner.context(), ViewOf(x, {tokens, heads, size}), ViewOf(theta, {heads, size}),
                  positions, ViewOf(y, {tokens, heads, 2 * size}));
      std::vector<double> expected(y.size());
      for (size_t i = 0; i < x.size(); ++i) {
        const auto columns = static_cast<size_t>(heads * size), t = i / columns,
                   column = i % columns;
        const auto at = i / static_cast<size_t>(size) * static_cast<size_t>(2 * size) +
                        column % static_cast<size_t>(size);
        const long double angle =
            static_cast<long double>(theta[column]) * static_cast<long double>(positions[t]);
        expected[at] = static_cast<double>(x[i] * std::cos(angle));
        expected[at + static_cast<size_t>(size)] = static_cast<double>(x[i] * std::sin(angle));
      }
      EXPECT_LT(MaxError(y, expected), tolerance) << tokens << " " << size;
    }
  }
}

TEST(LrpeTest, ForwardMatchesPlainLoops) {
  CheckLrpeForward<double>(1e-13);
  CheckLrpeForward<float>(1e-6);
}

TEST(LrpeTest, BackwardMatchesFiniteDifferences) {
  OpRunner runner(2);
  const OpContext& context = runner.context();
  for (int64_t tokens : {1, 9, 520}) {
    const int64_t heads = 2, size = 5;
    auto x = RandomNormal(tokens * heads * size, 1);
    auto theta = RandomNormal(heads * size, 2);
    auto positions = PackedPositions(tokens);
    positions[0] = 5;  // position 0 has no gradient
    const auto dy = RandomNormal(2 * tokens * heads * size, 3);
    const Shape shape = {tokens, heads, size}, wide = {tokens, heads, 2 * size};
    std::vector<double> y(dy.size()), dx(x.size(), NAN), dtheta(theta.size(), 0.0);
    LrpeBackward(context, ViewOf(x, shape), ViewOf(theta, {heads, size}), positions,
                 ViewOf(dy, wide), ViewOf(dx, shape), ViewOf(dtheta, {heads, size}));
    const auto loss = [&] {
      LrpeForward(context, ViewOf(x, shape), ViewOf(theta, {heads, size}), positions,
                  ViewOf(y, wide));
      return Dot(y, dy);
    };
    EXPECT_LT(MaxGradientError(loss, x.data(), dx.data(), shape.num_elements(), 10, 4), 1e-6);
    // theta is multiplied by positions of up to 3000: its step must be that much smaller.
    EXPECT_LT(MaxGradientError(loss, theta.data(), dtheta.data(), heads * size, 10, 5, 1e-6), 1e-6);
    auto twice = dtheta;
    LrpeBackward(context, ViewOf(x, shape), ViewOf(theta, {heads, size}), positions,
                 ViewOf(dy, wide), ViewOf(dx, shape), ViewOf(twice, {heads, size}));
    for (size_t i = 0; i < twice.size(); ++i) {
      EXPECT_NEAR(twice[i], 2 * dtheta[i], 1e-13 * std::abs(dtheta[i]));
    }
  }
}

// The same position has the same bits wherever its token stands, and on any number of threads.
TEST(LrpeTest, BitsDependOnPositionsAlone) {
  const int64_t tokens = 700, heads = 3, size = 33;
  const auto x = RandomNormal<float>(tokens * heads * size, 1);
  const auto theta = RandomNormal<float>(heads * size, 2);
  const auto dy = RandomNormal<float>(2 * tokens * heads * size, 3);
  const auto positions = PackedPositions(tokens);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    std::vector<float> y(dy.size()), dx(x.size()), dtheta(theta.size(), 1);
    LrpeForward(context, ViewOf(x, {tokens, heads, size}), ViewOf(theta, {heads, size}), positions,
                ViewOf(y, {tokens, heads, 2 * size}));
    LrpeBackward(context, ViewOf(x, {tokens, heads, size}), ViewOf(theta, {heads, size}), positions,
                 ViewOf(dy, {tokens, heads, 2 * size}), ViewOf(dx, {tokens, heads, size}),
                 ViewOf(dtheta, {heads, size}));
    auto out = y;
    out.insert(out.end(), dx.begin(), dx.end());
    out.insert(out.end(), dtheta.begin(), dtheta.end());
    // One token alone, as a decode step has it.
    std::vector<float> alone(static_cast<size_t>(2 * heads * size));
    const int64_t t = 431;
    LrpeForward(context, ViewOf(x, {tokens, heads, size}).Rows(t, t + 1),
                ViewOf(theta, {heads, size}), {positions[static_cast<size_t>(t)]},
                ViewOf(alone, {1, heads, 2 * size}));
    const auto row = y.begin() + t * 2 * heads * size;
    EXPECT_TRUE(SameBits(alone, std::vector<float>(row, row + 2 * heads * size)));
    return out;
  });
}

}  // namespace
}  // namespace evenkeel
