// metrics.jsonl: what a run measured, one JSON object a line, for people's scripts and for our own
// plots.
//
//   {"v":1,"t":1755900000.125,"event":"train","step":12,"loss":2.25,"tokens":4096}
//
// v: version of this format; t: Unix time in seconds; step: optimizer steps done. A number that is
// not finite is null and its name is listed: "loss":null,"nonfinite":["loss"]. The file is only
// ever appended to. A resumed run first writes {"event":"resume","step":S}, S the step of the
// checkpoint it restored: lines before the marker with step > S describe work that was lost and
// done again. With S = 0 the run began anew, and no line before the marker counts.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/metrics/append_file.h"
#include "runtime/metrics/metric_value.h"

namespace evenkeel {

enum class MetricEvent { kTrain, kEval, kCheckpoint, kResume, kFault };

const char* NameOf(MetricEvent event);

// Returns one line, newline included. Names must be distinct, and none of v, t, event, step,
// nonfinite.
std::string MetricsLine(MetricEvent event, int64_t step, double unix_seconds,
                        absl::Span<const MetricValue> values);

// The writer. One process, normally rank 0, and one of its threads.
class MetricsLog {
 public:
  // Opens or creates `path` for appending. If a killed process left half a line at its end, that
  // line is ended first, so that it spoils no other.
  static absl::StatusOr<MetricsLog> Open(const std::string& path);

  // Appends a line with the present time. A write error is warned about once and ends nothing.
  void Write(MetricEvent event, int64_t step, absl::Span<const MetricValue> values);

 private:
  explicit MetricsLog(AppendFile file) : file_(std::move(file)) {}

  AppendFile file_;
};

struct MetricsRow {
  int64_t step = 0;
  double unix_seconds = 0;
  std::vector<MetricValue> values;  // in file order; NaN for null
};

struct MetricsHistory {
  std::vector<MetricsRow> rows;  // in file order
  int64_t skipped_lines = 0;     // not of this format: half written, damaged, another version
};

// Reads the lines of kind `event` that no later resume marker supersedes. NotFound if there is no
// such file; lines that cannot be read are counted, not errors.
absl::StatusOr<MetricsHistory> ReadMetrics(const std::string& path, MetricEvent event);

struct MetricSeries {
  std::vector<double> steps;
  std::vector<double> values;
};

// Returns value `name` of the rows that have it as a number.
MetricSeries SeriesOf(const MetricsHistory& history, const std::string& name);

}  // namespace evenkeel
