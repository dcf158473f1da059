#include "runtime/ops/cross_entropy.h"

#include "tests/support/finite_difference.h"
#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

template <typename T>
std::vector<double> ReferenceLosses(const std::vector<T>& logits, int64_t vocabulary,
                                    const std::vector<int32_t>& targets) {
  std::vector<double> losses(targets.size());
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] == kIgnoredTarget) continue;
    const T* z = logits.data() + static_cast<int64_t>(t) * vocabulary;
    long double max = -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < vocabulary; ++j) max = std::max<long double>(max, z[j]);
    for (int64_t j = 0; j < vocabulary; ++j) sum += std::exp(static_cast<long double>(z[j]) - max);
    losses[t] = static_cast<double>(max + std::log(sum) - z[targets[t]]);
  }
  return losses;
}

TensorView LossesIn(std::vector<double>& losses) {
  return TensorView(losses.data(), DType::kF64, {static_cast<int64_t>(losses.size())});
}

template <typename T>
void CheckLosses(double tolerance) {
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t rows : {0, 1, 67}) {
    for (int32_t vocabulary : {1, 2, 16, 33, 1009}) {
      for (double scale : {1.0, 30.0}) {
        auto logits = RandomNormal<T>(rows * vocabulary, 1, scale);
        for (T& z : logits) z += static_cast<T>(100);  // the maximum must be taken out
        auto targets = RandomTokens(rows, vocabulary, 2);
        if (rows > 1) targets[1] = kIgnoredTarget;
        const Shape shape = {rows, vocabulary};
        std::vector<double> losses(targets.size(), -1), again(targets.size(), -1);
        CrossEntropyForward(runner.context(), ViewOf(logits, shape), targets, LossesIn(losses));
        EXPECT_LT(MaxError(losses, ReferenceLosses(logits, vocabulary, targets)), tolerance);
        CrossEntropyForwardBackward(runner.context(), targets, 1, ViewOf(logits, shape),
                                    LossesIn(again));
        EXPECT_TRUE(SameBits(again, losses));
      }
    }
  }
}

TEST(CrossEntropyTest, LossesMatchPlainLoops) {
  CheckLosses<double>(1e-13);
  CheckLosses<float>(1e-6);
}

TEST(CrossEntropyTest, GradientMatchesFiniteDifferences) {
  OpRunner runner(2);
  const int64_t rows = 9;
  for (int32_t vocabulary : {2, 37}) {
    auto logits = RandomNormal(rows * vocabulary, 1, 2);
    auto targets = RandomTokens(rows, vocabulary, 2);
    targets[4] = kIgnoredTarget;
    const Shape shape = {rows, vocabulary};
    std::vector<double> losses(targets.size());
    auto gradient = logits;
    CrossEntropyForwardBackward(runner.context(), targets, 0.25, ViewOf(gradient, shape),
                                LossesIn(losses));
    const auto loss = [&] {
      CrossEntropyForward(runner.context(), ViewOf(logits, shape), targets, LossesIn(losses));
      double sum = 0;
      for (double value : losses) sum += 0.25 * value;
      return sum;
    };
    EXPECT_LT(MaxGradientError(loss, logits.data(), gradient.data(), shape.num_elements(), 30, 3),
              1e-6);
    for (int32_t j = 0; j < vocabulary; ++j) {
      EXPECT_EQ(gradient[static_cast<size_t>(4 * vocabulary + j)], 0);
    }
  }
}

TEST(CrossEntropyTest, ReadsAndWritesItsColumnsOnly) {
  OpRunner runner(2);
  const int64_t rows = 5, width = 70, vocabulary = 21;
  auto wide = RandomNormal(rows * width, 1);
  const auto before = wide;
  std::vector<double> dense;
  for (size_t t = 0; t < 5; ++t) {
    const auto row = wide.begin() + static_cast<int64_t>(t) * width + 40;
    dense.insert(dense.end(), row, row + vocabulary);
  }
  const auto targets = RandomTokens(rows, 21, 2);
  std::vector<double> losses(5), dense_losses(5);
  CrossEntropyForwardBackward(runner.context(), targets, 1,
                              ColumnsOf(wide, rows, width, 40, 40 + vocabulary), LossesIn(losses));
  CrossEntropyForwardBackward(runner.context(), targets, 1, ViewOf(dense, {rows, vocabulary}),
                              LossesIn(dense_losses));
  EXPECT_TRUE(SameBits(losses, dense_losses));
  for (size_t i = 0; i < wide.size(); ++i) {
    const size_t t = i / 70, j = i % 70;
    EXPECT_EQ(wide[i], j >= 40 && j < 61 ? dense[t * 21 + j - 40] : before[i]) << i;
  }
}

template <typename T>
void CheckUnusualLogits() {
  OpRunner runner(1, DTypeOf<T>::value);
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  for (size_t place : {0, 3, 18, 36}) {  // in a whole vector and in the last, partial one
    for (T value : {kNan, kInfinity}) {
      std::vector<T> logits(37, 1);
      logits[place] = value;
      std::vector<double> losses = {0};
      CrossEntropyForward(runner.context(), ViewOf(logits, {1, 37}), std::vector<int32_t>{5},
                          LossesIn(losses));
      EXPECT_TRUE(std::isnan(losses[0]));
      losses[0] = 0;
      CrossEntropyForwardBackward(runner.context(), std::vector<int32_t>{5}, 1,
                                  ViewOf(logits, {1, 37}), LossesIn(losses));
      EXPECT_TRUE(std::isnan(losses[0]));
      for (T gradient : logits) EXPECT_TRUE(std::isnan(gradient));
    }
    // A masked logit takes no probability; a token without loss hides even a NaN.
    std::vector<T> logits(74, 1);
    logits[place] = -kInfinity;
    logits[37 + place] = kNan;
    std::vector<double> losses(2, -1);
    CrossEntropyForwardBackward(runner.context(), std::vector<int32_t>{5, kIgnoredTarget}, 1,
                                ViewOf(logits, {2, 37}), LossesIn(losses));
    EXPECT_NEAR(losses[0], std::log(36.0), 1e-6);
    EXPECT_EQ(logits[place], 0);
    EXPECT_EQ(losses[1], 0);
    for (size_t j = 37; j < 74; ++j) EXPECT_EQ(logits[j], 0);
  }
}

TEST(CrossEntropyTest, ReportsNanAndHonoursMasks) {
  CheckUnusualLogits<float>();
  CheckUnusualLogits<double>();
}

TEST(CrossEntropyTest, BitsDoNotDependOnThreads) {
  const int64_t rows = 130, vocabulary = 517;
  const auto logits = RandomNormal<float>(rows * vocabulary, 1, 4);
  const auto targets = RandomTokens(rows, 517, 2);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    auto gradient = logits;
    std::vector<double> losses(targets.size());
    CrossEntropyForwardBackward(context, targets, 0.1, ViewOf(gradient, {rows, vocabulary}),
                                LossesIn(losses));
    losses.insert(losses.end(), gradient.begin(), gradient.end());
    return losses;
  });
}

}  // namespace
}  // namespace evenkeel
