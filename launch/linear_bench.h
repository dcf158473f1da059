// Times lightning attention on one device: over lengths of documents, and steps of decoding.
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
  std::vector<int64_t> sequences;  // of a step of decoding
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

// Seconds of a step of decoding: a token of each of so many sequences.
struct DecodePoint {
  int64_t sequences = 0;
  double step_s = 0;
};

// Bytes of the states of so many sequences; a step reads and writes each once.
double DecodeStateBytes(const OpContext& context, const LinearBenchOptions& options,
                        int64_t sequences);

// Fails with kResourceExhausted where the states of so many sequences take more than half of the
// device's memory.
absl::Status CheckDecodeFits(const RankRuntime& rank, const LinearBenchOptions& options,
                             int64_t sequences);

// Measures steps of options.sequences, which must fit, states in place, the same ones at every
// step: those of few sequences stay in the device's caches. Calls tell(point) after each.
absl::StatusOr<std::vector<DecodePoint>> MeasureDecode(
    const RankRuntime& rank, const LinearBenchOptions& options,
    const std::function<void(const DecodePoint&)>& tell);

}  // namespace evenkeel
