#include "runtime/data/sample_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "runtime/base/exit_code.h"
#include "runtime/base/philox.h"

namespace evenkeel {
namespace {

struct Case {
  std::vector<int64_t> lengths;
  int64_t sequence_length;
};

std::vector<Case> Cases() {
  std::vector<Case> cases = {
      {{1}, 1},       {{1}, 8},          {{5}, 2},
      {{1, 1, 1}, 2}, {{100, 1, 7}, 16}, {{0, 0, 3, 0, 0, 4, 0}, 2},
      {{64, 64}, 64}, {{3, 5, 7}, 15},   {{3, 5, 7}, std::numeric_limits<int64_t>::max()},
  };
  const Philox random(11, 0);
  Case many{{}, 97};
  for (uint64_t i = 0; i < 300; ++i) {
    many.lengths.push_back(static_cast<int64_t>(random.Bits(i) % (i % 10 == 0 ? 2000 : 60)));
  }
  cases.push_back(many);
  return cases;
}

int64_t Total(const std::vector<int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

TEST(SampleOrder, PartitionsTheTokensOfEveryEpoch) {
  for (const Case& c : Cases()) {
    auto order = SampleOrder::Create(c.lengths, c.sequence_length, 5);
    ASSERT_TRUE(order.ok()) << order.status();
    const int64_t samples = order->num_samples_per_epoch(), total = Total(c.lengths);
    EXPECT_EQ(samples, total / c.sequence_length + (total % c.sequence_length != 0));
    for (int64_t epoch = 0; epoch < 4; ++epoch) {
      std::vector<std::vector<int>> seen;
      for (const int64_t length : c.lengths) seen.emplace_back(static_cast<size_t>(length), 0);
      int64_t short_samples = 0;
      for (int64_t i = 0; i < samples; ++i) {
        int64_t tokens = 0;
        for (const Piece& piece : order->Sample(epoch * samples + i)) {
          ASSERT_GT(piece.length, 0);
          tokens += piece.length;
          for (int64_t t = piece.offset; t < piece.offset + piece.length; ++t) {
            ++seen.at(static_cast<size_t>(piece.document)).at(static_cast<size_t>(t));
          }
        }
        EXPECT_LE(tokens, c.sequence_length);
        short_samples += tokens < c.sequence_length;
      }
      EXPECT_LE(short_samples, 1);
      for (const auto& document : seen) {
        EXPECT_TRUE(std::all_of(document.begin(), document.end(), [](int n) { return n == 1; }));
      }
    }
  }
}

TEST(SampleOrder, DoesNotDependOnTheOrderOfAccess) {
  const Case c = Cases().back();
  auto order = SampleOrder::Create(c.lengths, c.sequence_length, 5);
  ASSERT_TRUE(order.ok());
  const int64_t count = 3 * order->num_samples_per_epoch() + 5;
  std::vector<std::vector<Piece>> forward;
  for (int64_t i = 0; i < count; ++i) forward.push_back(order->Sample(i));
  for (int64_t i = count - 1; i >= 0; --i) {
    EXPECT_EQ(order->Sample(i), forward[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < 60; ++i) {
    // Another object that sees this sample only, in an epoch it starts with.
    const int64_t sample = i * 7919 % count;
    auto fresh = SampleOrder::Create(c.lengths, c.sequence_length, 5);
    EXPECT_EQ(fresh->Sample(sample), forward[static_cast<size_t>(sample)]);
  }
}

TEST(SampleOrder, DiffersBetweenSeedsAndEpochs) {
  const Case c = Cases().back();
  auto a = SampleOrder::Create(c.lengths, c.sequence_length, 5);
  auto b = SampleOrder::Create(c.lengths, c.sequence_length, 6);
  const int64_t samples = a->num_samples_per_epoch();
  int64_t same_seed = 0, same_epoch = 0;
  for (int64_t i = 0; i < samples; ++i) {
    same_seed += a->Sample(i) == b->Sample(i);
    same_epoch += a->Sample(i) == a->Sample(i + samples);
  }
  EXPECT_LT(same_seed, 3);
  EXPECT_LT(same_epoch, 3);
}

// A resumed run of another build must see the same samples: these are frozen.
TEST(SampleOrder, StaysTheSame) {
  auto order = SampleOrder::Create({3, 5, 2, 7}, 4, 42);
  ASSERT_TRUE(order.ok());
  std::vector<std::vector<Piece>> samples;
  for (int64_t i = 0; i < 5; ++i) samples.push_back(order->Sample(i));
  const std::vector<std::vector<Piece>> expected = {{{0, 2, 1}},
                                                    {{1, 4, 1}, {2, 0, 2}, {3, 0, 1}},
                                                    {{1, 0, 4}},
                                                    {{3, 5, 2}, {0, 0, 2}},
                                                    {{3, 1, 4}}};
  EXPECT_EQ(samples, expected);
}

TEST(SampleOrder, DrawsEveryPermutationAlike) {
  // Documents of one token, windows of all: the pieces are the permutation. 24 orders of 4
  // documents in 24000 epochs: chi-square with 23 degrees of freedom is below 60 but for 1 in 30000
  // seeds.
  auto order = SampleOrder::Create({1, 1, 1, 1}, 4, 9);
  ASSERT_TRUE(order.ok());
  std::vector<int> counts(256, 0);
  for (int64_t epoch = 0; epoch < 24000; ++epoch) {
    size_t key = 0;
    for (const Piece& piece : order->Sample(epoch)) {
      key = key * 4 + static_cast<size_t>(piece.document);
    }
    ++counts[key];
  }
  double chi_square = 0;
  int orders = 0;
  for (const int count : counts) {
    if (count == 0) continue;
    ++orders;
    chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  }
  EXPECT_EQ(orders, 24);
  EXPECT_LT(chi_square, 60);
}

TEST(SampleOrder, RefusesWhatCannotBeOrdered) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const std::vector<int64_t>& lengths :
       std::vector<std::vector<int64_t>>{{}, {0, 0}, {3, -1}, {kMax, 1}}) {
    EXPECT_EQ(ExitCodeOf(SampleOrder::Create(lengths, 4, 0).status()), ExitCode::kData);
    EXPECT_EQ(ExitCodeOf(SequentialOrder::Create(lengths, 4).status()), ExitCode::kData);
  }
  EXPECT_FALSE(SampleOrder::Create({3}, 0, 0).ok());
  EXPECT_FALSE(SequentialOrder::Create({3}, -1).ok());
  EXPECT_FALSE(SampleOrder::Create({int64_t{1} << 40}, 1, 0).ok());
}

TEST(SequentialOrder, CutsEachDocumentFromItsStart) {
  const auto order = SequentialOrder::Create({5, 0, 4, 1}, 4);
  ASSERT_TRUE(order.ok()) << order.status();
  ASSERT_EQ(order->num_samples(), 4);
  EXPECT_EQ(order->Sample(0), (std::vector<Piece>{{0, 0, 4}}));
  EXPECT_EQ(order->Sample(1), (std::vector<Piece>{{0, 4, 1}}));
  EXPECT_EQ(order->Sample(2), (std::vector<Piece>{{2, 0, 4}}));
  EXPECT_EQ(order->Sample(3), (std::vector<Piece>{{3, 0, 1}}));
  for (const Case& c : Cases()) {
    const auto each = SequentialOrder::Create(c.lengths, c.sequence_length);
    int64_t tokens = 0;
    for (int64_t i = 0; i < each->num_samples(); ++i) tokens += each->Sample(i)[0].length;
    EXPECT_EQ(tokens, Total(c.lengths));
  }
}

}  // namespace
}  // namespace evenkeel
