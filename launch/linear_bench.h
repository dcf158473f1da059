// Times lightning attention on one device over lengths of documents.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/bench_measure.h"
#include "launch/rank_runtime.h"

namespace evenkeel {

struct LinearBenchOptions {
  int64_t heads = 0;
  int64_t head_size = 0;
  std::vector<int64_t> lengths;
  TimingOptions timing;
};

// Seconds of a launch.
struct LinearPoint {
  int64_t length = 0;
  int64_t documents = 0;
  double forward_s = 0;
  double backward_s = 0;
  double both_s = 0;

  int64_t tokens() const { return length * documents; }
};

// FLOPs that count: 4 a token, head and element of a state forward, 12 backward, where the states
// are computed again; what is done inside chunks is not counted.
double LinearFlops(const LinearBenchOptions& options, const LinearPoint& point, bool forward,
                   bool backward);

// Measures documents of every length, enough of them to fill the device. Calls tell(point) after
// each length.
absl::StatusOr<std::vector<LinearPoint>> MeasureLinear(
    const RankRuntime& rank, const LinearBenchOptions& options,
    const std::function<void(const LinearPoint&)>& tell);

}  // namespace evenkeel
