// Times core attention on one device over a grid of task shapes, in fused batches of tasks alike:
// what a server of disaggregated attention runs.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/attention_cost_file.h"
#include "launch/bench_measure.h"
#include "launch/rank_runtime.h"

namespace evenkeel {

struct AttentionBenchOptions {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_size = 0;
  std::vector<int64_t> q_lens;
  std::vector<int64_t> kv_lens;
  TimingOptions timing;
};

// How many tasks of one shape a launch gets: enough to fill the device, as far as memory goes.
struct AttentionBatch {
  int64_t tasks = 0;
  int64_t key_sets = 0;  // tasks beyond these share the keys of another, as shards of a document do
};
absl::StatusOr<AttentionBatch> BatchFor(const RankRuntime& rank,
                                        const AttentionBenchOptions& options, int64_t q_len,
                                        int64_t kv_len);

// FLOPs that count: 4 a (query, key) pair, head and element forward, 10 backward, where the scores
// are computed again.
double AttentionFlops(const AttentionBenchOptions& options, const AttentionCostPoint& point,
                      bool forward, bool backward);

// Measures (q_len, kv_len) for every q_len of the options, and whole documents of every kv_len,
// where q_len <= kv_len. Calls tell(point) after each.
absl::StatusOr<std::vector<AttentionCostPoint>> MeasureAttention(
    const RankRuntime& rank, const AttentionBenchOptions& options,
    const std::function<void(const AttentionCostPoint&)>& tell);

}  // namespace evenkeel
