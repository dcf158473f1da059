#include "runtime/ops/norm.h"

#include "tests/support/finite_difference.h"
#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

constexpr double kEps = 1e-5;

template <typename T>
std::vector<double> Reference(const std::vector<T>& x, const std::vector<T>& gain,
                              int64_t columns) {
  std::vector<double> y(x.size());
  for (size_t begin = 0; begin < x.size(); begin += static_cast<size_t>(columns)) {
    double squares = 0;
    for (size_t j = 0; j < static_cast<size_t>(columns); ++j) {
      squares += static_cast<double>(x[begin + j]) * static_cast<double>(x[begin + j]);
    }
    const double r = 1 / std::sqrt(squares / static_cast<double>(columns) + kEps);
    for (size_t j = 0; j < static_cast<size_t>(columns); ++j) {
      y[begin + j] =
          static_cast<double>(x[begin + j]) * r * (gain.empty() ? 1 : static_cast<double>(gain[j]));
    }
  }
  return y;
}

template <typename T>
void CheckForward(double tolerance) {
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t rows : {0, 1, 3, 300}) {
    for (int64_t columns : {1, 15, 16, 97, 320}) {
      const auto x = RandomNormal<T>(rows * columns, 1, 3);
      for (const auto& gain : {std::vector<T>{}, RandomNormal<T>(columns, 2)}) {
        std::vector<T> y(x.size());
        const auto gain_view = gain.empty() ? ConstTensorView() : ViewOf(gain, {columns});
        RmsNormForward(runner.context(), ViewOf(x, {rows, columns}), gain_view, kEps,
                       ViewOf(y, {rows, columns}));
        EXPECT_LT(MaxError(y, Reference(x, gain, columns)), tolerance) << rows << " " << columns;
        auto in_place = x;
        RmsNormForward(runner.context(), ViewOf(in_place, {rows, columns}), gain_view, kEps,
                       ViewOf(in_place, {rows, columns}));
        EXPECT_TRUE(SameBits(in_place, y));
      }
    }
  }
}

TEST(RmsNormTest, ForwardMatchesPlainLoops) {
  CheckForward<double>(1e-14);
  CheckForward<float>(1e-6);
}

// The middle head columns of a fused projection, per head: rows are strided twice.
TEST(RmsNormTest, NormalisesHeadsOfAFusedProjection) {
  OpRunner runner(2);
  const int64_t tokens = 5, width = 50, heads = 3, size = 7;
  auto fused = RandomNormal(tokens * width, 4);
  const auto before = fused;
  const auto view = ColumnsOf(fused, tokens, width, 11, 11 + heads * size).SplitHeads(heads);
  RmsNormForward(runner.context(), view, {}, kEps, view);
  std::vector<double> expected = before;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto begin = before.begin() + t * width + 11 + h * size;
      const auto y = Reference(std::vector<double>(begin, begin + size), {}, size);
      std::copy(y.begin(), y.end(), expected.begin() + t * width + 11 + h * size);
    }
  }
  EXPECT_LT(MaxError(fused, expected), 1e-14);
}

TEST(RmsNormTest, BackwardMatchesFiniteDifferences) {
  OpRunner runner(2);
  const OpContext& context = runner.context();
  for (int64_t rows : {1, 7, 515}) {
    for (int64_t columns : {1, 3, 33}) {
      for (bool has_gain : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << columns << " gain " << has_gain);
        auto x = RandomNormal(rows * columns, 1);
        for (double& value : x) value += value < 0 ? -0.5 : 0.5;  // away from a zero norm
        auto gain = has_gain ? RandomNormal(columns, 2) : std::vector<double>{};
        const auto dy = RandomNormal(rows * columns, 3);
        const Shape shape = {rows, columns};
        const auto gain_view = has_gain ? ViewOf(gain, {columns}) : TensorView();
        std::vector<double> dx(x.size()), dgain(gain.size(), 0.0), y(x.size());
        RmsNormBackward(context, ViewOf(x, shape), gain_view, kEps, ViewOf(dy, shape),
                        ViewOf(dx, shape), false,
                        has_gain ? ViewOf(dgain, {columns}) : TensorView());
        const auto loss = [&] {
          RmsNormForward(context, ViewOf(x, shape), gain_view, kEps, ViewOf(y, shape));
          return Dot(y, dy);
        };
        const auto size = static_cast<int64_t>(x.size());
        EXPECT_LT(MaxGradientError(loss, x.data(), dx.data(), size, 8, 5), 1e-6);
        if (has_gain) {
          EXPECT_LT(MaxGradientError(loss, gain.data(), dgain.data(), columns, 8, 6), 1e-6);
        }

        // dx may be dy; dx and dgain accumulate.
        auto in_place = dy;
        auto dgain_twice = dgain;
        RmsNormBackward(context, ViewOf(x, shape), gain_view, kEps, ViewOf(in_place, shape),
                        ViewOf(in_place, shape), false,
                        has_gain ? ViewOf(dgain_twice, {columns}) : TensorView());
        EXPECT_TRUE(SameBits(in_place, dx));
        for (size_t j = 0; j < dgain.size(); ++j) EXPECT_NEAR(dgain_twice[j], 2 * dgain[j], 1e-12);
        auto added = x;
        RmsNormBackward(context, ViewOf(x, shape), gain_view, kEps, ViewOf(dy, shape),
                        ViewOf(added, shape), true,
                        has_gain ? ViewOf(dgain_twice, {columns}) : TensorView());
        for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(added[i], x[i] + dx[i], 1e-13);
      }
    }
  }
}

TEST(RmsNormTest, BitsDoNotDependOnThreads) {
  const int64_t rows = 1100, columns = 99;
  const auto x = RandomNormal<float>(rows * columns, 1),
             dy = RandomNormal<float>(rows * columns, 2);
  const auto gain = RandomNormal<float>(columns, 3);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    std::vector<float> out(static_cast<size_t>((2 * rows + 1) * columns), 0.5f);
    const auto view = ViewOf(out, {2 * rows + 1, columns});
    RmsNormForward(context, ViewOf(x, {rows, columns}), ViewOf(gain, {columns}), kEps,
                   view.Rows(0, rows));
    RmsNormBackward(context, ViewOf(x, {rows, columns}), ViewOf(gain, {columns}), kEps,
                    ViewOf(dy, {rows, columns}), view.Rows(rows, 2 * rows), true,
                    view.Rows(2 * rows, 2 * rows + 1).Reshape({columns}));
    return out;
  });
}

TEST(RmsNormTest, NanFillsItsRowOnly) {
  OpRunner runner(1);
  auto x = RandomNormal(3 * 20, 1);
  x[25] = NAN;
  RmsNormForward(runner.context(), ViewOf(x, {3, 20}), {}, kEps, ViewOf(x, {3, 20}));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(std::isnan(x[i]), i / 20 == 1) << i;
}

}  // namespace
}  // namespace evenkeel
