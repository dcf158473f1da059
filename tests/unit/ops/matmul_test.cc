#include "runtime/ops/matmul.h"

#include <gmock/gmock.h>

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

struct Case {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  double beta;
  int64_t padding;  // columns of each matrix's memory that are not part of it
};

// The stored matrix of op(x) [rows, columns], inside wider rows.
template <typename T>
struct Stored {
  Stored(int64_t rows, int64_t columns, bool is_transposed, int64_t padding, uint64_t seed)
      : transposed(is_transposed),
        stored_rows(is_transposed ? columns : rows),
        stored_columns(is_transposed ? rows : columns),
        width(stored_columns + padding),
        data(RandomNormal<T>(std::max<int64_t>(1, stored_rows * width), seed)) {}

  TensorView view() {
    return ViewOf(data, {stored_rows, width}).Columns(width - stored_columns, width);
  }
  T& at(int64_t i, int64_t j) {
    if (transposed) std::swap(i, j);
    return data[static_cast<size_t>(i * width + width - stored_columns + j)];
  }

  bool transposed;
  int64_t stored_rows, stored_columns, width;
  std::vector<T> data;
};

template <typename T>
double ErrorOf(const OpContext& context, const Case& test) {
  Stored<T> a(test.m, test.k, test.transpose_a, test.padding, 1);
  Stored<T> b(test.k, test.n, test.transpose_b, test.padding, 2);
  Stored<T> c(test.m, test.n, false, test.padding, 3);
  std::vector<double> expected(c.data.begin(), c.data.end());
  for (int64_t i = 0; i < test.m; ++i) {
    for (int64_t j = 0; j < test.n; ++j) {
      double sum = test.beta == 0 ? 0 : test.beta * static_cast<double>(c.at(i, j));
      for (int64_t l = 0; l < test.k; ++l) {
        sum += static_cast<double>(a.at(i, l)) * static_cast<double>(b.at(l, j));
      }
      expected[static_cast<size_t>(i * c.width + test.padding + j)] = sum;
      if (test.beta == 0) c.at(i, j) = std::numeric_limits<T>::quiet_NaN();
    }
  }
  MatMul(context, a.view(), Transpose{test.transpose_a}, b.view(), Transpose{test.transpose_b},
         test.beta, c.view());
  return MaxError(c.data, expected);
}

TEST(MatMulTest, MatchesPlainLoops) {
  const std::vector<std::array<int64_t, 3>> shapes = {
      {0, 5, 3},  {5, 0, 3},    {5, 4, 0},     {0, 0, 0},    {1, 1, 1},      {1, 64, 33},
      {64, 1, 7}, {31, 37, 29}, {2, 129, 300}, {67, 200, 5}, {97, 101, 256}, {260, 130, 67}};
  OpRunner runner(2);
  for (const auto& [m, n, k] : shapes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      for (double beta : {0.0, 1.0, -0.5}) {
        for (int64_t padding : {0, 3}) {
          const Case test = {m, n, k, (transposes & 1) != 0, (transposes & 2) != 0, beta, padding};
          SCOPED_TRACE(testing::Message()
                       << m << "x" << n << "x" << k << " transposes " << transposes << " beta "
                       << beta << " padding " << padding);
          EXPECT_LT(ErrorOf<double>(runner.context(), test), 1e-13 * std::sqrt(k + 1.0));
          EXPECT_LT(ErrorOf<float>(runner.context(), test), 1e-6 * std::sqrt(k + 1.0));
        }
      }
    }
  }
}

// Large enough to be cut into many tiles; the cut must tile c exactly. Small integers make every
// sum exact, and the reference cheap: op(a) has equal rows up to a factor, op(b) equal columns.
TEST(MatMulTest, TilesCoverTheResult) {
  OpRunner runner(3, DType::kF32);
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1025, 1031, 97}, {4099, 65, 130}, {63, 5003, 130}, {2048, 33, 512}, {17, 16, 100000}}) {
    std::vector<float> a(static_cast<size_t>(m * k)), b(static_cast<size_t>(n * k));
    std::vector<float> c(static_cast<size_t>(m * n), -1);
    const auto row_factor = [](int64_t i) { return static_cast<float>(i % 13); };
    for (size_t i = 0; i < a.size(); ++i) a[i] = row_factor(static_cast<int64_t>(i) / k);
    for (size_t i = 0; i < b.size(); ++i) b[i] = row_factor(static_cast<int64_t>(i) / k + 5);
    LinearForward(runner.context(), ViewOf(a, {m, k}), ViewOf(b, {n, k}), ViewOf(c, {m, n}));
    int64_t wrong = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        wrong += c[static_cast<size_t>(i * n + j)] !=
                 row_factor(i) * row_factor(j + 5) * static_cast<float>(k);
      }
    }
    EXPECT_EQ(wrong, 0) << m << "x" << n << "x" << k;
  }
}

TEST(MatMulTest, BitsDoNotDependOnThreads) {
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {512, 320, 320}, {300, 1000, 64}, {1000, 70, 129}, {64, 128, 128}}) {
    const auto a = RandomNormal<float>(m * k, 1), b = RandomNormal<float>(n * k, 2);
    ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
      std::vector<float> c(static_cast<size_t>(m * n));
      LinearForward(context, ViewOf(a, {m, k}), ViewOf(b, {n, k}), ViewOf(c, {m, n}));
      return c;
    });
  }
}

TEST(MatMulTest, LinearsAreEachOthersTransposes) {
  OpRunner runner(2);
  const OpContext& context = runner.context();
  const int64_t t = 19, n = 23, k = 41;
  const auto x = RandomNormal(t * k, 1), w = RandomNormal(n * k, 2), dy = RandomNormal(t * n, 3);
  std::vector<double> y(t * n), dx(t * k), dw(n * k, 0.0);
  LinearForward(context, ViewOf(x, {t, k}), ViewOf(w, {n, k}), ViewOf(y, {t, n}));
  LinearBackwardInput(context, ViewOf(dy, {t, n}), ViewOf(w, {n, k}), ViewOf(dx, {t, k}));
  LinearBackwardWeight(context, ViewOf(dy, {t, n}), ViewOf(x, {t, k}), ViewOf(dw, {n, k}));
  // y is linear in x and in w, so all three inner products are the same number.
  EXPECT_NEAR(Dot(dx, x), Dot(dy, y), 1e-10);
  EXPECT_NEAR(Dot(dw, w), Dot(dy, y), 1e-10);

  auto twice = y;
  const auto bias = RandomNormal(n, 4);
  LinearForward(context, ViewOf(x, {t, k}), ViewOf(w, {n, k}), ViewOf(bias, {n}),
                ViewOf(twice, {t, n}), ViewOf(twice, {t, n}));
  for (size_t i = 0; i < y.size(); ++i) y[i] = 2 * y[i] + bias[i % static_cast<size_t>(n)];
  EXPECT_LT(MaxError(twice, y), 1e-13);
}

TEST(MatMulTest, CarriesNanToItsRowAndColumnOnly) {
  OpRunner runner(2);
  const int64_t m = 70, n = 90, k = 33;
  auto a = RandomNormal(m * k, 1);
  const auto b = RandomNormal(n * k, 2);
  a[5 * k + 7] = NAN;
  std::vector<double> c(m * n);
  LinearForward(runner.context(), ViewOf(a, {m, k}), ViewOf(b, {n, k}), ViewOf(c, {m, n}));
  for (int64_t i = 0; i < m * n; ++i) {
    EXPECT_EQ(std::isnan(c[static_cast<size_t>(i)]), i / n == 5) << i;
  }
}

TEST(MatMulTest, DescribesItself) {
  EXPECT_THAT(DescribeBlas(), testing::HasSubstr("OpenBLAS"));
}

TEST(MatMulDeathTest, RejectsShapesThatDoNotFit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  OpRunner runner(1);
  std::vector<double> a(12), b(12), c(16);
  EXPECT_DEATH(MatMul(runner.context(), ViewOf(a, {4, 3}), Transpose::kNo, ViewOf(b, {4, 3}),
                      Transpose::kNo, 0, ViewOf(c, {4, 3})),
               "4, 3");
}

}  // namespace
}  // namespace evenkeel
