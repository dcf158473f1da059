#include "runtime/data/length_statistics.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

namespace evenkeel {
namespace {

TEST(LengthStatistics, CountsAndPercentiles) {
  std::vector<int64_t> lengths;
  for (int64_t i = 100; i >= 1; --i) lengths.push_back(i);
  const LengthStatistics s = ComputeLengthStatistics(lengths);
  EXPECT_EQ(s.num_documents, 100);
  EXPECT_EQ(s.total_tokens, 5050);
  EXPECT_EQ(s.min, 1);
  EXPECT_EQ(s.median, 50);
  EXPECT_DOUBLE_EQ(s.mean, 50.5);
  EXPECT_EQ(s.p90, 90);
  EXPECT_EQ(s.p99, 99);
  EXPECT_EQ(s.max, 100);
  ASSERT_EQ(s.buckets.size(), 7u);
  EXPECT_EQ(s.buckets[0].begin, 1);
  EXPECT_EQ(s.buckets[0].num_documents, 1);
  EXPECT_EQ(s.buckets[6].begin, 64);
  EXPECT_EQ(s.buckets[6].end, 128);
  EXPECT_EQ(s.buckets[6].num_documents, 37);
}

TEST(LengthStatistics, NearestRankOfFewDocuments) {
  const LengthStatistics one = ComputeLengthStatistics({7});
  EXPECT_EQ(one.median, 7);
  EXPECT_EQ(one.p99, 7);
  const LengthStatistics three = ComputeLengthStatistics({9, 1, 5});
  EXPECT_EQ(three.median, 5);
  EXPECT_EQ(three.p90, 9);
  EXPECT_EQ(ComputeLengthStatistics({1, 2}).median, 1);
}

TEST(LengthStatistics, BucketsAddUpWithoutGaps) {
  const LengthStatistics s = ComputeLengthStatistics({0, 0, 1, 2, 3, 4, 1000, (1LL << 40) + 1});
  int64_t documents = 0, tokens = 0, next = 0;
  for (const LengthBucket& bucket : s.buckets) {
    EXPECT_EQ(bucket.begin, next);
    next = bucket.end;
    documents += bucket.num_documents;
    tokens += bucket.num_tokens;
  }
  EXPECT_EQ(next, 1LL << 41);
  EXPECT_EQ(documents, 8);
  EXPECT_EQ(tokens, s.total_tokens);
  EXPECT_EQ(s.buckets[2].num_documents, 2);
}

TEST(LengthStatistics, RendersATable) {
  const std::string text =
      FormatLengthStatistics(ComputeLengthStatistics({100, 100, 100, 300, 1600}), 72);
  EXPECT_EQ(text, R"(documents  5
tokens     2,200
length     min 100, median 100, mean 440.0, p90 1,600, p99 1,600, max 1,600

 length in tokens  documents  share of documents    share of tokens
     64 -     127          3  ############   60.0%  ##             13.6%
    128 -     255          0                  0.0%                  0.0%
    256 -     511          1  ####           20.0%  ##             13.6%
    512 -   1,023          0                  0.0%                  0.0%
  1,024 -   2,047          1  ####           20.0%  ############   72.7%
)");
}

TEST(LengthStatistics, KeepsToTheWidth) {
  std::vector<int64_t> lengths;
  for (int k = 0; k < 26; ++k) lengths.insert(lengths.end(), 1 + k * k, 1LL << k);
  for (const int width : {0, 72, 80, 100, 200}) {
    std::istringstream text(FormatLengthStatistics(ComputeLengthStatistics(lengths), width));
    std::string line;
    int lines = 0;
    for (int i = 0; i < 3; ++i) std::getline(text, line);
    while (std::getline(text, line)) {
      EXPECT_LE(line.size(), static_cast<size_t>(std::max(width, 72))) << line;
      lines += line.find('%') != std::string::npos;
    }
    EXPECT_EQ(lines, 26);
  }
}

TEST(LengthStatistics, OfNoDocuments) {
  const LengthStatistics s = ComputeLengthStatistics({});
  EXPECT_EQ(s.num_documents, 0);
  EXPECT_EQ(
      FormatLengthStatistics(s),
      "documents  0\ntokens     0\nlength     min 0, median 0, mean 0.0, p90 0, p99 0, max 0\n");
}

}  // namespace
}  // namespace evenkeel
