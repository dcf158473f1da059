#include "runtime/ops/activation.h"

#include "tests/support/finite_difference.h"
#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

double Reference(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kElu:
      return x > 0 ? x : std::expm1(x);
    case Activation::kOneElu:
      return x > 0 ? 1 + x : std::exp(x);
  }
  return NAN;
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kElu, Activation::kOneElu};

template <typename T>
void CheckForward(double tolerance) {
  OpRunner runner(2, DTypeOf<T>::value);
  std::vector<T> x = RandomNormal<T>(9001, 1, 10);
  for (double value :
       {0.0, -0.0, 1e-4, -1e-4, -1e-20, -0.349, -0.351, 50.0, -50.0, 300.0, -300.0}) {
    x.push_back(static_cast<T>(value));
  }
  x.push_back(std::numeric_limits<T>::quiet_NaN());
  const Shape shape = {static_cast<int64_t>(x.size())};
  for (Activation activation : kActivations) {
    std::vector<T> y(x.size());
    ActivationForward(runner.context(), activation, ViewOf(x, shape), ViewOf(y, shape));
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = Reference(activation, static_cast<double>(x[i]));
      if (std::isnan(x[i])) {
        EXPECT_TRUE(std::isnan(y[i]));
      } else {  // relative: tiny values must be as good as large ones
        EXPECT_NEAR(y[i], expected, tolerance * std::abs(expected) + 1e-35) << x[i];
      }
    }
    auto in_place = x;
    ActivationForward(runner.context(), activation, ViewOf(in_place, shape),
                      ViewOf(in_place, shape));
    EXPECT_TRUE(SameBits(in_place, y));
  }
}

TEST(ActivationTest, ForwardMatchesTheFormulas) {
  CheckForward<double>(4e-15);
  CheckForward<float>(1e-6);
}

TEST(ActivationTest, BackwardMatchesFiniteDifferences) {
  OpRunner runner(2);
  const OpContext& context = runner.context();
  for (Activation activation : kActivations) {
    for (int64_t rows : {1, 37}) {
      auto x = RandomNormal(rows * 5 * 3, 1, 2);
      for (double& value : x) value += value < 0 ? -0.01 : 0.01;  // ELU has a kink at 0
      const auto dy = RandomNormal(rows * 5 * 3, 2);
      const Shape shape = {rows, 5, 3};
      std::vector<double> y(x.size()), dx(x.size());
      ActivationBackward(context, activation, ViewOf(x, shape), ViewOf(dy, shape),
                         ViewOf(dx, shape));
      const auto loss = [&] {
        ActivationForward(context, activation, ViewOf(x, shape), ViewOf(y, shape));
        return Dot(y, dy);
      };
      EXPECT_LT(MaxGradientError(loss, x.data(), dx.data(), shape.num_elements(), 10, 3), 1e-6);
      auto in_place = dy;
      ActivationBackward(context, activation, ViewOf(x, shape), ViewOf(in_place, shape),
                         ViewOf(in_place, shape));
      EXPECT_TRUE(SameBits(in_place, dx));
    }
  }
}

TEST(ActivationTest, LeavesWhatLiesBetweenStridedRows) {
  OpRunner runner(2);
  const int64_t rows = 9, width = 40;
  auto data = RandomNormal(rows * width, 1);
  auto expected = data;
  const auto view = ColumnsOf(data, rows, width, 3, 22);
  ActivationForward(runner.context(), Activation::kSilu, view, view);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (i % 40 >= 3 && i % 40 < 22) expected[i] = Reference(Activation::kSilu, expected[i]);
  }
  EXPECT_LT(MaxError(data, expected), 1e-14);
}

TEST(ActivationTest, NanGradientsReachTheInput) {
  OpRunner runner(1);
  for (Activation activation : kActivations) {
    std::vector<double> x = {1, NAN, -1}, dy = {NAN, 1, 1}, dx(3);
    ActivationBackward(runner.context(), activation, ViewOf(x, {3}), ViewOf(dy, {3}),
                       ViewOf(dx, {3}));
    EXPECT_TRUE(std::isnan(dx[0]) && std::isnan(dx[1]) && !std::isnan(dx[2]));
  }
}

class GatedUnitTest : public testing::TestWithParam<GatedUnit> {};

TEST_P(GatedUnitTest, ForwardMatchesTheFormula) {
  OpRunner runner(2);
  for (int64_t rows : {0, 1, 63}) {
    const int64_t size = 45;
    const auto pair = RandomNormal(rows * 2 * size, 1, 3);
    std::vector<double> h(static_cast<size_t>(rows * size)), expected(h.size());
    GatedUnitForward(runner.context(), GetParam(), ViewOf(pair, {rows, 2 * size}),
                     ViewOf(h, {rows, size}));
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t j = 0; j < size; ++j) {
        const double gate = pair[static_cast<size_t>(t * 2 * size + j)];
        const double up = pair[static_cast<size_t>(t * 2 * size + size + j)];
        expected[static_cast<size_t>(t * size + j)] =
            up * (GetParam() == GatedUnit::kSwiGlu ? Reference(Activation::kSilu, gate) : gate);
      }
    }
    EXPECT_LT(MaxError(h, expected), 1e-14);
  }
}

TEST_P(GatedUnitTest, BackwardMatchesFiniteDifferences) {
  OpRunner runner(2);
  const OpContext& context = runner.context();
  const int64_t rows = 11, size = 37;
  auto pair = RandomNormal(rows * 2 * size, 1);
  const auto dh = RandomNormal(rows * size, 2);
  const Shape shape = {rows, 2 * size};
  std::vector<double> h(dh.size()), dpair(pair.size());
  GatedUnitBackward(context, GetParam(), ViewOf(pair, shape), ViewOf(dh, {rows, size}),
                    ViewOf(dpair, shape));
  const auto loss = [&] {
    GatedUnitForward(context, GetParam(), ViewOf(pair, shape), ViewOf(h, {rows, size}));
    return Dot(h, dh);
  };
  EXPECT_LT(MaxGradientError(loss, pair.data(), dpair.data(), shape.num_elements(), 20, 3), 1e-6);
  GatedUnitBackward(context, GetParam(), ViewOf(pair, shape), ViewOf(dh, {rows, size}),
                    ViewOf(pair, shape));
  EXPECT_TRUE(SameBits(pair, dpair));
}

TEST_P(GatedUnitTest, BitsDoNotDependOnThreads) {
  const int64_t rows = 301, size = 113;
  const auto pair = RandomNormal<float>(rows * 2 * size, 1),
             dh = RandomNormal<float>(rows * size, 2);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    std::vector<float> out(static_cast<size_t>(rows * 3 * size));
    const auto view = ViewOf(out, {rows, 3 * size});
    GatedUnitForward(context, GetParam(), ViewOf(pair, {rows, 2 * size}), view.Columns(0, size));
    GatedUnitBackward(context, GetParam(), ViewOf(pair, {rows, 2 * size}), ViewOf(dh, {rows, size}),
                      view.Columns(size, 3 * size));
    return out;
  });
}

INSTANTIATE_TEST_SUITE_P(Units, GatedUnitTest,
                         testing::Values(GatedUnit::kSwiGlu, GatedUnit::kSglu));

}  // namespace
}  // namespace evenkeel
