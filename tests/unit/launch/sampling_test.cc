#include "launch/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

namespace evenkeel {
namespace {

std::vector<int> CountsOf(const std::vector<double>& logits, const SamplingOptions& options,
                          int draws) {
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < draws; ++i) {
    const int32_t token = SampleToken(logits, options, static_cast<uint64_t>(i));
    EXPECT_GE(token, 0);
    EXPECT_LT(token, static_cast<int32_t>(logits.size()));
    ++counts[static_cast<size_t>(token)];
  }
  return counts;
}

// Chi-square of the counts against weights that need not sum to one; a weight of 0 must not occur.
double ChiSquare(const std::vector<int>& counts, const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const double draws = std::accumulate(counts.begin(), counts.end(), 0);
  double chi_square = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = draws * weights[i] / sum;
    if (weights[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i;
    } else {
      chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
  }
  return chi_square;
}

std::vector<double> Softmax(const std::vector<double>& logits, double temperature) {
  std::vector<double> weights;
  for (double logit : logits) weights.push_back(std::exp(logit / temperature));
  return weights;
}

const std::vector<double> kLogits = {0.5, -1, 2, 0.5, 1, -0.3};

TEST(SampleToken, GreedyTakesTheFirstOfTheLargest) {
  SamplingOptions options;
  options.temperature = 0;
  EXPECT_EQ(SampleToken(kLogits, options, 3), 2);
  EXPECT_EQ(SampleToken({1, 5, 2, 5, 5}, options, 0), 1);
  EXPECT_EQ(SampleToken({-7}, options, 0), 0);
  EXPECT_EQ(SampleToken({-1e300, -1e301}, options, 0), 0);
}

TEST(SampleToken, DrawsFromTheSoftmax) {
  for (const double temperature : {1.0, 0.5, 3.0}) {
    SamplingOptions options;
    options.temperature = temperature;
    options.seed = 1;
    // 5 degrees of freedom: 20.5 is passed once in a thousand.
    EXPECT_LT(ChiSquare(CountsOf(kLogits, options, 20000), Softmax(kLogits, temperature)), 20.5)
        << temperature;
  }
}

TEST(SampleToken, TopKKeepsTheMostLikely) {
  SamplingOptions options;
  options.top_k = 3;
  // 0 and 3 tie for the third place: the lower token has it.
  std::vector<double> weights = Softmax(kLogits, 1);
  weights[1] = weights[3] = weights[5] = 0;
  EXPECT_LT(ChiSquare(CountsOf(kLogits, options, 20000), weights), 13.8);
  options.top_k = 1;
  EXPECT_EQ(CountsOf(kLogits, options, 100)[2], 100);
  for (const int64_t all : {0, 6, 100}) {
    options.top_k = all;
    EXPECT_LT(ChiSquare(CountsOf(kLogits, options, 20000), Softmax(kLogits, 1)), 20.5) << all;
  }
}

TEST(SampleToken, TopPKeepsTheSmallestSetWithTheProbability) {
  // Probabilities 0.4, 0.3, 0.2, 0.1 in another order.
  const std::vector<double> logits = {std::log(0.1), std::log(0.4), std::log(0.2), std::log(0.3)};
  const struct {
    double top_p;
    std::vector<double> weights;
  } cases[] = {
      {0.0, {0, 0.4, 0, 0}},       {0.39, {0, 0.4, 0, 0}},     {0.41, {0, 0.4, 0, 0.3}},
      {0.69, {0, 0.4, 0, 0.3}},    {0.71, {0, 0.4, 0.2, 0.3}}, {0.91, {0.1, 0.4, 0.2, 0.3}},
      {1.0, {0.1, 0.4, 0.2, 0.3}},
  };
  for (const auto& c : cases) {
    SamplingOptions options;
    options.top_p = c.top_p;
    EXPECT_LT(ChiSquare(CountsOf(logits, options, 10000), c.weights), 16.3) << c.top_p;
  }
}

TEST(SampleToken, TopPCountsWhatTopKLeft) {
  const std::vector<double> logits = {std::log(0.4), std::log(0.3), std::log(0.2), std::log(0.1)};
  SamplingOptions options;
  options.top_k = 2;    // 0.4 and 0.3 become 4 / 7 and 3 / 7
  options.top_p = 0.5;  // and the first alone has more than that
  EXPECT_EQ(CountsOf(logits, options, 200)[0], 200);
}

TEST(SampleToken, ExtremeTemperatures) {
  SamplingOptions options;
  options.temperature = 1e-300;
  EXPECT_EQ(CountsOf(kLogits, options, 200)[2], 200);
  options.temperature = 1e300;
  EXPECT_LT(ChiSquare(CountsOf(kLogits, options, 20000), std::vector<double>(6, 1)), 20.5);
  options.temperature = -1;
  EXPECT_EQ(CountsOf(kLogits, options, 50)[2], 50) << "below zero is greedy";
}

TEST(SampleToken, LargeLogitsDoNotOverflow) {
  SamplingOptions options;
  EXPECT_LT(ChiSquare(CountsOf({1e5, 1e5, 1e5 - 2000}, options, 10000), {1, 1, 0}), 10.9);
  EXPECT_LT(ChiSquare(CountsOf({-1e5, -1e5}, options, 10000), {1, 1}), 10.9);
}

TEST(SampleToken, IsAFunctionOfLogitsOptionsAndIndex) {
  SamplingOptions options;
  options.seed = 5;
  std::vector<int32_t> first, again, other_seed;
  for (uint64_t i = 0; i < 200; ++i) first.push_back(SampleToken(kLogits, options, i));
  for (uint64_t i = 200; i-- > 0;) again.push_back(SampleToken(kLogits, options, i));
  std::reverse(again.begin(), again.end());
  EXPECT_EQ(first, again);
  EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 3u);
  options.seed = 6;
  for (uint64_t i = 0; i < 200; ++i) other_seed.push_back(SampleToken(kLogits, options, i));
  EXPECT_NE(first, other_seed);
}

}  // namespace
}  // namespace evenkeel
