// The distribution of document lengths: what decides how unevenly attention work falls on the
// ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace evenkeel {

struct LengthBucket {
  int64_t begin = 0;  // lengths in [begin, end): 0 alone, then [2^k, 2^(k+1))
  int64_t end = 0;
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
};

// Percentiles are by nearest rank: the smallest length that at least that share of documents does
// not exceed. All zero without documents.
struct LengthStatistics {
  int64_t num_documents = 0;
  int64_t total_tokens = 0;
  int64_t min = 0;
  int64_t median = 0;
  double mean = 0;
  int64_t p90 = 0;
  int64_t p99 = 0;
  int64_t max = 0;
  std::vector<LengthBucket> buckets;  // from the shortest document's to the longest's, no gaps
};

// `lengths` in tokens, none negative, in any order.
LengthStatistics ComputeLengthStatistics(std::vector<int64_t> lengths);

// Renders the numbers and a histogram with two bars a bucket, its share of the documents and its
// share of the tokens, each column's bars scaled to its greatest, in lines of at most `width`
// characters (at least 72 are used). Ends with a newline.
std::string FormatLengthStatistics(const LengthStatistics& statistics, int width = 100);

}  // namespace evenkeel
