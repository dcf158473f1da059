#include "runtime/data/length_statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace evenkeel {
namespace {

// Index of the bucket: 0 for length 0, k + 1 for [2^k, 2^(k+1)).
int BucketOf(int64_t length) {
  return std::bit_width(static_cast<uint64_t>(length));
}

LengthBucket EmptyBucket(int index) {
  if (index == 0) return {.begin = 0, .end = 1};
  return {.begin = int64_t{1} << (index - 1), .end = int64_t{1} << index};
}

// `sorted` is not empty; `percent` in (0, 100].
int64_t NearestRank(const std::vector<int64_t>& sorted, int64_t percent) {
  const int64_t n = static_cast<int64_t>(sorted.size());
  // ceil(n * percent / 100) without overflow for any n
  const int64_t rank = n / 100 * percent + (n % 100 * percent + 99) / 100;
  return sorted[static_cast<size_t>(rank - 1)];
}

std::string WithThousands(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3) {
    digits.insert(static_cast<size_t>(i), 1, ',');
  }
  return digits;
}

// A bar that fills `width` characters for the column's greatest share; what is there at all shows
// at least one.
std::string Bar(double share, double greatest, int width) {
  const int full =
      share > 0 ? std::max(1, static_cast<int>(std::lround(share / greatest * width))) : 0;
  return std::string(static_cast<size_t>(full), '#') +
         std::string(static_cast<size_t>(width - full), ' ');
}

}  // namespace

LengthStatistics ComputeLengthStatistics(std::vector<int64_t> lengths) {
  LengthStatistics statistics;
  if (lengths.empty()) return statistics;
  std::sort(lengths.begin(), lengths.end());
  const int first = BucketOf(lengths.front()), last = BucketOf(lengths.back());
  for (int i = first; i <= last; ++i) statistics.buckets.push_back(EmptyBucket(i));
  for (const int64_t length : lengths) {
    LengthBucket& bucket = statistics.buckets[static_cast<size_t>(BucketOf(length) - first)];
    ++bucket.num_documents;
    bucket.num_tokens += length;
    statistics.total_tokens += length;
  }
  statistics.num_documents = static_cast<int64_t>(lengths.size());
  statistics.min = lengths.front();
  statistics.median = NearestRank(lengths, 50);
  statistics.mean =
      static_cast<double>(statistics.total_tokens) / static_cast<double>(lengths.size());
  statistics.p90 = NearestRank(lengths, 90);
  statistics.p99 = NearestRank(lengths, 99);
  statistics.max = lengths.back();
  return statistics;
}

std::string FormatLengthStatistics(const LengthStatistics& s, int width) {
  std::string text = absl::StrFormat(
      "documents  %s\ntokens     %s\n"
      "length     min %s, median %s, mean %.1f, p90 %s, p99 %s, max %s\n",
      WithThousands(s.num_documents), WithThousands(s.total_tokens), WithThousands(s.min),
      WithThousands(s.median), s.mean, WithThousands(s.p90), WithThousands(s.p99),
      WithThousands(s.max));
  if (s.buckets.empty()) return text;

  // Wide enough for the two headings.
  size_t length_width = 7, count_width = 9;
  for (const LengthBucket& bucket : s.buckets) {
    length_width = std::max(length_width, WithThousands(bucket.end - 1).size());
    count_width = std::max(count_width, WithThousands(bucket.num_documents).size());
  }
  // "BEGIN - END  COUNT  BAR  12.3%  BAR  12.3%"
  const int fixed = static_cast<int>(2 * length_width + 3 + 2 + count_width) + 2 * 2 + 2 * 8;
  const int bar = std::max(8, (std::max(width, 72) - fixed) / 2);
  absl::StrAppend(&text, "\n",
                  absl::StrFormat("%*s  %*s  %-*s  %s\n", static_cast<int>(2 * length_width + 3),
                                  "length in tokens", static_cast<int>(count_width), "documents",
                                  bar + 8, "share of documents", "share of tokens"));
  const double documents = static_cast<double>(std::max<int64_t>(s.num_documents, 1));
  const double tokens = static_cast<double>(std::max<int64_t>(s.total_tokens, 1));
  double most_documents = 0, most_tokens = 0;
  for (const LengthBucket& bucket : s.buckets) {
    most_documents =
        std::max(most_documents, static_cast<double>(bucket.num_documents) / documents);
    most_tokens = std::max(most_tokens, static_cast<double>(bucket.num_tokens) / tokens);
  }
  for (const LengthBucket& bucket : s.buckets) {
    const double document_share = static_cast<double>(bucket.num_documents) / documents;
    const double token_share = static_cast<double>(bucket.num_tokens) / tokens;
    absl::StrAppend(
        &text, absl::StrFormat("%*s - %*s  %*s  %s  %5.1f%%  %s  %5.1f%%\n",
                               static_cast<int>(length_width), WithThousands(bucket.begin),
                               static_cast<int>(length_width), WithThousands(bucket.end - 1),
                               static_cast<int>(count_width), WithThousands(bucket.num_documents),
                               Bar(document_share, most_documents, bar), 100 * document_share,
                               Bar(token_share, most_tokens, bar), 100 * token_share));
  }
  return text;
}

}  // namespace evenkeel
