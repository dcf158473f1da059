// What a piece of causal attention costs a server. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

// Pairs (query, key) of q_len queries of which the last sees kv_len keys, the one before it one
// fewer, and so on. kv_len >= q_len.
inline double CausalPairs(int64_t q_len, int64_t kv_len) {
  return static_cast<double>(q_len) * static_cast<double>(kv_len) -
         static_cast<double>(q_len) * static_cast<double>(q_len - 1) / 2;
}

// Time of a task in a batch of many, forward or backward: pairs times the time of a pair, which is
// constant (FLOPs) or measured over a grid of lengths and interpolated between its points.
class AttentionCost {
 public:
  // `seconds_per_pair` of one layer on a server of speed 1, all heads of a tensor-parallel rank.
  static AttentionCost PerPair(double seconds_per_pair);
  // A grid measured by `evenkeel bench attention`. seconds_per_pair is [q_lens * kv_lens], rows of
  // one q_len; lengths ascend. Beyond the grid its edge holds; between points it is bilinear in the
  // logarithms of the lengths.
  static absl::StatusOr<AttentionCost> Grid(std::vector<int64_t> q_lens,
                                            std::vector<int64_t> kv_lens,
                                            std::vector<double> seconds_per_pair);

  bool is_constant() const { return q_lens_.lengths.empty(); }
  // Seconds; 0 for no query.
  double Seconds(int64_t q_len, int64_t kv_len) const {
    if (q_len <= 0) return 0;
    const double per_pair =
        is_constant() ? seconds_per_pair_.front() : SecondsPerPair(q_len, kv_len);
    return CausalPairs(q_len, kv_len) * per_pair;
  }

 private:
  struct GridAxis {
    std::vector<int64_t> lengths;
    std::vector<double> logs;  // of the lengths

    void Set(std::vector<int64_t> points);
    // The last point at or below `length` and how far `length` is on the way to the next one, in
    // logarithms; beyond the ends the end itself.
    std::pair<size_t, double> Find(int64_t length) const;
  };

  double SecondsPerPair(int64_t q_len, int64_t kv_len) const;

  GridAxis q_lens_, kv_lens_;
  std::vector<double> seconds_per_pair_{0};
};

}  // namespace evenkeel
