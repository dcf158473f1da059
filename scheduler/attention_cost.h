// What a piece of causal attention costs a server. Pure.
#pragma once

#include <cstdint>
#include <string>
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

  bool is_constant() const { return q_lens_.empty(); }
  // Seconds; 0 for no query.
  double Seconds(int64_t q_len, int64_t kv_len) const;

 private:
  std::vector<int64_t> q_lens_, kv_lens_;
  std::vector<double> seconds_per_pair_{0};
};

}  // namespace evenkeel
