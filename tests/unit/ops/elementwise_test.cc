#include "runtime/ops/elementwise.h"

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

template <typename T>
class ElementwiseTest : public testing::Test {};
using FloatTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(ElementwiseTest, FloatTypes);

// Every op on columns [3, 3 + columns) of wider rows: what lies beside them must stay.
TYPED_TEST(ElementwiseTest, MatchesPlainLoopsOnStridedAndDenseViews) {
  using T = TypeParam;
  OpRunner runner(2, DTypeOf<T>::value);
  const OpContext& context = runner.context();
  for (int64_t rows : {0, 1, 5, 400}) {
    for (int64_t columns : {1, 16, 61}) {
      for (int64_t padding : {0, 5}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << columns << " + " << padding);
        const int64_t width = columns + padding, first = padding / 2;
        const auto a = RandomNormal<T>(rows * width, 1), b = RandomNormal<T>(rows * width, 2);
        const auto y = RandomNormal<T>(rows * width, 3);
        const auto part = [&](auto& data) {
          return ColumnsOf(data, rows, width, first, first + columns);
        };
        const auto expect = [&](const char* name, const std::vector<T>& before, const auto& op,
                                const auto& formula) {
          std::vector<T> after = before, expected = before;
          op(part(after));
          for (size_t i = 0; i < expected.size(); ++i) {
            const int64_t column = static_cast<int64_t>(i) % width;
            if (column >= first && column < first + columns)
              expected[i] = formula(i, column - first);
          }
          EXPECT_TRUE(SameBits(after, expected)) << name;
        };
        expect(
            "SetZero", y, [&](TensorView v) { SetZero(context, v); },
            [&](size_t, int64_t) { return T{0}; });
        expect(
            "Copy", y, [&](TensorView v) { Copy(context, part(a), v); },
            [&](size_t i, int64_t) { return a[i]; });
        expect(
            "Add", y, [&](TensorView v) { Add(context, part(a), part(b), v); },
            [&](size_t i, int64_t) { return a[i] + b[i]; });
        expect(
            "Add in place", b, [&](TensorView v) { Add(context, part(a), v, v); },
            [&](size_t i, int64_t) { return a[i] + b[i]; });
        expect(
            "AddWide", y, [&](TensorView v) { AddWide(context, part(a), v); },
            [&](size_t i, int64_t) { return y[i] + a[i]; });
        expect(
            "Multiply", y, [&](TensorView v) { Multiply(context, part(a), part(b), v); },
            [&](size_t i, int64_t) { return a[i] * b[i]; });
        expect(
            "Multiply in place", a, [&](TensorView v) { Multiply(context, v, part(b), v); },
            [&](size_t i, int64_t) { return a[i] * b[i]; });
        expect(
            "Scale", y, [&](TensorView v) { Scale(context, 0.7, v); },
            [&](size_t i, int64_t) { return static_cast<T>(0.7) * y[i]; });
        const auto bias = RandomNormal<T>(columns, 4);
        expect(
            "AddBias", y, [&](TensorView v) { AddBias(context, ViewOf(bias, {columns}), v); },
            [&](size_t i, int64_t j) { return y[i] + bias[static_cast<size_t>(j)]; });
      }
    }
  }
}

TYPED_TEST(ElementwiseTest, BiasBackwardAddsTheSumOfRows) {
  using T = TypeParam;
  OpRunner runner(3, DTypeOf<T>::value);
  for (int64_t rows : {0, 1, 255, 256, 257, 1030}) {
    const int64_t columns = 19;
    const auto dy = RandomNormal<T>(rows * columns, 1);
    auto dbias = RandomNormal<T>(columns, 2);
    std::vector<double> expected(dbias.begin(), dbias.end());
    for (size_t i = 0; i < dy.size(); ++i) expected[i % 19] += static_cast<double>(dy[i]);
    BiasBackward(runner.context(), ViewOf(dy, {rows, columns}), ViewOf(dbias, {columns}));
    EXPECT_LT(MaxError(dbias, expected), sizeof(T) == 4 ? 1e-5 : 1e-13) << rows;
  }
}

double SquaresOf(const OpContext& context, ConstTensorView x) {
  double sum = 0;
  AddSquares(context, x, TensorView(&sum, DType::kF64, {1}));
  return sum;
}

TYPED_TEST(ElementwiseTest, SumOfSquaresIsAddedUpInFloat64) {
  using T = TypeParam;
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t n : {0, 1, 17, 16384, 100003}) {
    const auto x = RandomNormal<T>(n, 1);
    long double expected = 0;
    for (T value : x) expected += static_cast<long double>(value) * value;
    EXPECT_NEAR(SquaresOf(runner.context(), ViewOf(x, {n})), static_cast<double>(expected),
                1e-13 * static_cast<double>(expected))
        << n;
  }
  std::vector<T> with_nan(1000, 1);
  with_nan[999] = std::numeric_limits<T>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SquaresOf(runner.context(), ViewOf(with_nan, {1000}))));
}

TYPED_TEST(ElementwiseTest, BitsDoNotDependOnThreads) {
  using T = TypeParam;
  const int64_t rows = 1300, columns = 67;
  const auto dy = RandomNormal<T>(rows * columns, 1);
  ExpectSameOnAnyThreads(DTypeOf<T>::value, [&](const OpContext& context) {
    std::vector<T> dbias(static_cast<size_t>(columns), 0);
    BiasBackward(context, ViewOf(dy, {rows, columns}), ViewOf(dbias, {columns}));
    return dbias;
  });
  ExpectSameOnAnyThreads(DTypeOf<T>::value, [&](const OpContext& context) {
    return std::vector<double>{SquaresOf(context, ViewOf(dy, {rows, columns}))};
  });
}

TEST(ElementwiseViewTest, TakesHeadsOfAFusedProjection) {
  OpRunner runner(2);
  auto fused = RandomNormal(6 * 30, 1);
  const auto q = ColumnsOf(fused, 6, 30, 2, 14).SplitHeads(3);
  std::vector<double> dense(6 * 12);
  Copy(runner.context(), q, ViewOf(dense, {6, 3, 4}));
  for (size_t t = 0; t < 6; ++t) {
    for (size_t j = 0; j < 12; ++j) EXPECT_EQ(dense[t * 12 + j], fused[t * 30 + 2 + j]);
  }
}

}  // namespace
}  // namespace evenkeel
