#include "runtime/base/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace evenkeel {
namespace {

// Known answers of philox4x32-10 from Random123's kat_vectors: counter words c0..c3, key words k0,
// k1. Block() lays them out as index = c1:c0, stream = c3:c2, seed = k1:k0.
TEST(Philox, GivesThePublishedAnswers) {
  const struct {
    uint32_t c0, c1, c2, c3, k0, k1;
    uint32_t expected[4];
  } cases[] = {
      {0, 0, 0, 0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x243f6a88,
       0x85a308d3,
       0x13198a2e,
       0x03707344,
       0xa4093822,
       0x299f31d0,
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const auto& c : cases) {
    const Philox random(uint64_t{c.k1} << 32 | c.k0, uint64_t{c.c3} << 32 | c.c2);
    const Philox::Words words = random.Block(uint64_t{c.c1} << 32 | c.c0);
    EXPECT_TRUE(std::equal(words.x, words.x + 4, c.expected));
  }
}

TEST(Philox, BitsAreTheFirstTwoWords) {
  EXPECT_EQ(Philox(0, 0).Bits(0), 0x6627e8d5e169c58dull);
}

TEST(Philox, SeedStreamAndIndexAllCount) {
  std::set<uint64_t> seen;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (uint64_t stream : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
      for (uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
        seen.insert(Philox(seed, stream).Bits(index));
      }
    }
  }
  EXPECT_EQ(seen.size(), 27u);
}

TEST(Philox, UniformIsInRangeAndEven) {
  constexpr int kValues = 200000, kBins = 64;
  const Philox random(11, 3);
  std::vector<int> counts(kBins, 0);
  for (int i = 0; i < kValues; ++i) {
    const double u = random.Uniform(static_cast<uint64_t>(i));
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++counts[static_cast<size_t>(u * kBins)];
  }
  double chi_square = 0;
  const double expected = static_cast<double>(kValues) / kBins;
  for (int count : counts) chi_square += (count - expected) * (count - expected) / expected;
  // 63 degrees of freedom: 103.4 is passed once in a thousand. Too small is as suspect as too
  // large.
  EXPECT_LT(chi_square, 103.4);
  EXPECT_GT(chi_square, 32);
}

// Mean 0, variance 1, skewness 0, kurtosis 3, each within four standard errors; the tails reach as
// far as they should.
TEST(Philox, NormalHasNormalMoments) {
  constexpr int kValues = 400000;
  const Philox random(5, 9);
  double sums[5] = {};
  int beyond_3 = 0;
  for (int i = 0; i < kValues; ++i) {
    const double x = random.Normal(static_cast<uint64_t>(i));
    ASSERT_TRUE(std::isfinite(x));
    for (int p = 1; p <= 4; ++p) sums[p] += std::pow(x, p);
    if (std::abs(x) > 3) ++beyond_3;
  }
  const double n = kValues, error = 4 / std::sqrt(n);
  EXPECT_NEAR(sums[1] / n, 0, error);
  EXPECT_NEAR(sums[2] / n, 1, error * std::sqrt(2.0));
  EXPECT_NEAR(sums[3] / n, 0, error * std::sqrt(15.0));
  EXPECT_NEAR(sums[4] / n, 3, error * std::sqrt(96.0));
  EXPECT_NEAR(beyond_3, 0.0026998 * n, 4 * std::sqrt(0.0027 * n));
}

TEST(Philox, NeighboursAreNotCorrelated) {
  constexpr int kValues = 100000;
  double same_stream = 0, next_stream = 0;
  const Philox random(1, 1), other(1, 2);
  for (uint64_t i = 0; i < kValues; ++i) {
    same_stream += random.Normal(i) * random.Normal(i + 1);
    next_stream += random.Normal(i) * other.Normal(i);
  }
  EXPECT_NEAR(same_stream / kValues, 0, 4 / std::sqrt(kValues));
  EXPECT_NEAR(next_stream / kValues, 0, 4 / std::sqrt(kValues));
}

}  // namespace
}  // namespace evenkeel
