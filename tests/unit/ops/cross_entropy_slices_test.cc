#include "runtime/ops/cross_entropy_slices.h"

#include <limits>

#include "runtime/ops/cross_entropy.h"
#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Result {
  std::vector<double> losses;
  std::vector<double> gradient;  // [T, V], as float64 whatever the dtype
};

// Columns [bounds[p], bounds[p + 1]) are slice p: views into one matrix, so rows are strided.
template <typename T>
Result Sliced(const OpContext& context, std::vector<T> logits, const std::vector<int64_t>& bounds,
              const std::vector<int32_t>& targets, double scale) {
  const auto tokens = static_cast<int64_t>(targets.size());
  const int64_t vocabulary = bounds.back();
  const auto slices = static_cast<int64_t>(bounds.size()) - 1;
  const auto view = ViewOf(logits, {tokens, vocabulary});
  std::vector<double> all(static_cast<size_t>(slices * tokens * 3), -7);
  const auto statistics = ViewOf(all, {slices, tokens, 3});
  const auto slice = [&](int64_t p) {
    return view.Columns(bounds[static_cast<size_t>(p)], bounds[static_cast<size_t>(p) + 1]);
  };
  for (int64_t p = 0; p < slices; ++p) {
    CrossEntropySliceStatistics(context, slice(p), targets, bounds[static_cast<size_t>(p)],
                                statistics.Rows(p, p + 1).Reshape({tokens, 3}));
  }
  Result result;
  const auto losses_of = [&](int64_t begin, TensorView part) {
    std::vector<double> losses(targets.size(), -7);
    CrossEntropySliceGradient(context, statistics, targets, begin, scale, part,
                              ViewOf(losses, {tokens}));
    return losses;
  };
  result.losses = losses_of(0, TensorView());
  for (int64_t p = 0; p < slices; ++p) {
    EXPECT_TRUE(SameBits(losses_of(bounds[static_cast<size_t>(p)], slice(p)), result.losses))
        << "losses of slice " << p;
  }
  result.gradient.assign(logits.begin(), logits.end());
  return result;
}

// The same by plain loops in float64.
template <typename T>
Result Plain(const std::vector<T>& logits, int64_t vocabulary, const std::vector<int32_t>& targets,
             double scale) {
  Result result{std::vector<double>(targets.size()), std::vector<double>(logits.size())};
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] == kIgnoredTarget) continue;
    const size_t begin = t * static_cast<size_t>(vocabulary),
                 end = begin + static_cast<size_t>(vocabulary);
    double max = -kInfinity, sum = 0;
    for (size_t i = begin; i < end; ++i) max = std::max(max, static_cast<double>(logits[i]));
    for (size_t i = begin; i < end; ++i) sum += std::exp(static_cast<double>(logits[i]) - max);
    const size_t target = begin + static_cast<size_t>(targets[t]);
    result.losses[t] = max + std::log(sum) - static_cast<double>(logits[target]);
    for (size_t i = begin; i < end; ++i) {
      result.gradient[i] =
          scale * (std::exp(static_cast<double>(logits[i]) - max) / sum - (i == target ? 1 : 0));
    }
  }
  return result;
}

const std::vector<std::vector<int64_t>> kCuts = {
    {0, 211}, {0, 100, 211}, {0, 1, 17, 64, 64, 200, 211}, {0, 0, 0, 105, 211, 211}};

std::vector<int32_t> Targets(int64_t tokens, int32_t vocabulary) {
  auto targets = RandomTokens(tokens, vocabulary, 2);
  for (size_t t = 1; t < targets.size(); t += 5) targets[t] = kIgnoredTarget;
  return targets;
}

template <typename T>
void CheckAgainstLoops(double tolerance) {
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t tokens : {0, 1, 67}) {
    for (const auto& bounds : kCuts) {
      SCOPED_TRACE(testing::Message() << tokens << " in " << bounds.size() - 1 << " slices");
      auto logits = RandomNormal<T>(tokens * 211, 1, 4);
      for (T& z : logits) z += static_cast<T>(300);  // the maximum must be taken out
      const auto targets = Targets(tokens, 211);
      const Result got = Sliced(runner.context(), logits, bounds, targets, 0.25);
      const Result want = Plain(logits, 211, targets, 0.25);
      EXPECT_LT(MaxError(got.losses, want.losses), tolerance);
      EXPECT_LT(MaxError(got.gradient, want.gradient), tolerance);
    }
  }
}

TEST(CrossEntropySlicesTest, MatchesPlainLoops) {
  CheckAgainstLoops<double>(1e-12);
  CheckAgainstLoops<float>(1e-5);
}

TEST(CrossEntropySlicesTest, AgreesWithTheWholeVocabulary) {
  OpRunner runner(2);
  const int64_t tokens = 41;
  const auto logits = RandomNormal(tokens * 211, 3, 5);
  const auto targets = Targets(tokens, 211);
  auto gradient = logits;
  std::vector<double> losses(targets.size());
  CrossEntropyForwardBackward(runner.context(), targets, 0.5, ViewOf(gradient, {tokens, 211}),
                              ViewOf(losses, {tokens}));
  for (const auto& bounds : kCuts) {
    const Result got = Sliced(runner.context(), logits, bounds, targets, 0.5);
    EXPECT_LT(MaxError(got.losses, losses), 1e-12);
    EXPECT_LT(MaxError(got.gradient, gradient), 1e-12);
  }
}

TEST(CrossEntropySlicesTest, StatisticsOfASlice) {
  OpRunner runner(1);
  const std::vector<double> logits = {1, 3, 2, -kInfinity, -kInfinity, -kInfinity, 5, 5, 0.5};
  std::vector<double> statistics(9, -7);
  CrossEntropySliceStatistics(runner.context(), ViewOf(logits, {3, 3}),
                              std::vector<int32_t>{12, 11, kIgnoredTarget}, 10,
                              ViewOf(statistics, {3, 3}));
  EXPECT_DOUBLE_EQ(statistics[0], 3);
  EXPECT_NEAR(statistics[1], 1 + std::exp(-1) + std::exp(-2), 1e-15);
  EXPECT_DOUBLE_EQ(statistics[2], 2);
  EXPECT_EQ(statistics[3], -kInfinity);
  EXPECT_EQ(statistics[4], 0);
  EXPECT_EQ(statistics[5], -kInfinity);
  EXPECT_DOUBLE_EQ(statistics[6], 5);
  EXPECT_NEAR(statistics[7], 2 + std::exp(-4.5), 1e-15);
  EXPECT_EQ(statistics[8], 0);
  // None of its tokens: ids just before and just behind it. And no logits at all.
  CrossEntropySliceStatistics(runner.context(), ViewOf(logits, {3, 3}),
                              std::vector<int32_t>{9, 13, 0}, 10, ViewOf(statistics, {3, 3}));
  for (size_t i : {2, 5, 8}) EXPECT_EQ(statistics[i], 0);
  CrossEntropySliceStatistics(runner.context(), ViewOf(logits, {3, 0}),
                              std::vector<int32_t>{9, 10, 0}, 10, ViewOf(statistics, {3, 3}));
  for (size_t i = 0; i < 9; ++i) EXPECT_EQ(statistics[i], i % 3 == 0 ? -kInfinity : 0);
}

template <typename T>
void CheckUnusualLogits() {
  OpRunner runner(1, DTypeOf<T>::value);
  const std::vector<int64_t> bounds = {0, 20, 40, 61};
  for (const double value : {std::nan(""), kInfinity}) {
    for (size_t place : {0, 19, 25, 60}) {
      std::vector<T> logits(122, 1);
      logits[place] = static_cast<T>(value);
      // Row 0 has no softmax, wherever its target is; row 1 is as ever.
      const Result got = Sliced(runner.context(), logits, bounds, {5, 50}, 1);
      EXPECT_TRUE(std::isnan(got.losses[0])) << value << " at " << place;
      EXPECT_NEAR(got.losses[1], std::log(61), 1e-6);
      for (size_t j = 0; j < 122; ++j) EXPECT_EQ(std::isnan(got.gradient[j]), j < 61) << j;
      const Result ignored = Sliced(runner.context(), logits, bounds, {kIgnoredTarget, 50}, 1);
      EXPECT_EQ(ignored.losses[0], 0);
      for (size_t j = 0; j < 61; ++j) EXPECT_EQ(ignored.gradient[j], 0);
    }
  }
  // A slice that is masked altogether takes no probability; a row that is has none to give.
  std::vector<T> logits(122, 1);
  std::fill(logits.begin() + 20, logits.begin() + 40, static_cast<T>(-kInfinity));
  std::fill(logits.begin() + 61, logits.end(), static_cast<T>(-kInfinity));
  const Result got = Sliced(runner.context(), logits, bounds, {60, 3}, 1);
  EXPECT_NEAR(got.losses[0], std::log(41), 1e-6);
  for (size_t j = 20; j < 40; ++j) EXPECT_EQ(got.gradient[j], 0);
  EXPECT_TRUE(std::isnan(got.losses[1]));
  EXPECT_TRUE(std::isnan(got.gradient[100]));
}

TEST(CrossEntropySlicesTest, ReportsNanAndHonoursMasks) {
  CheckUnusualLogits<float>();
  CheckUnusualLogits<double>();
}

TEST(CrossEntropySlicesTest, BitsDoNotDependOnThreads) {
  const int64_t tokens = 130;
  const auto logits = RandomNormal<float>(tokens * 211, 1, 4);
  const auto targets = Targets(tokens, 211);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    Result result = Sliced(context, logits, kCuts[2], targets, 0.1);
    result.losses.insert(result.losses.end(), result.gradient.begin(), result.gradient.end());
    return result.losses;
  });
}

}  // namespace
}  // namespace evenkeel
