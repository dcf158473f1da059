// Times messages between ranks and copies on each of them, all ranks at once: what a description of
// a cluster says of its links.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/bench_measure.h"
#include "launch/rank_runtime.h"

namespace evenkeel {

struct MessagePoint {
  int64_t bytes = 0;
  // Every rank sends so much to the next one and receives so much from the one before.
  double message_s = 0;
  double copy_s = 0;  // every rank copies so much, a range of rows
};

// Medians over the runs of what the slowest rank takes. Calls tell(point) after each size. Every
// rank of the job calls it; there are several.
absl::StatusOr<std::vector<MessagePoint>> MeasureMessages(
    const RankRuntime& rank, const TimingOptions& timing, const std::vector<int64_t>& sizes,
    const std::function<void(const MessagePoint&)>& tell);

// The line through the shortest and the longest message.
struct MessageLine {
  double latency_s = 0;
  double bytes_per_second = 0;
  double copy_bytes_per_second = 0;  // of the longest copy
};
MessageLine LineThrough(const std::vector<MessagePoint>& points);

}  // namespace evenkeel
