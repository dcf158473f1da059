// Chrome trace events (ui.perfetto.dev, chrome://tracing): what each lane of each rank did when.
// pid is the rank, tid the lane, times are microseconds. The file is a JSON array, one event a
// line, closed when the writer is destroyed. Viewers accept an array without its closing bracket,
// so the trace of a killed process opens too; for a strict parser, append "]".
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/metrics/append_file.h"
#include "runtime/metrics/metric_value.h"

namespace evenkeel {

// Safe from several threads.
class TraceWriter {
 public:
  // Creates or replaces `path`. Times are written relative to `origin_us`: if every rank takes
  // NowUs() as it leaves one barrier, the ranks' traces line up.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Create(const std::string& path, int rank,
                                                             double origin_us);
  ~TraceWriter();

  // Microseconds of a clock that never jumps.
  static double NowUs() {
    return std::chrono::duration<double, std::micro>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // Adds a lane, shown in the order of their creation; returns its number.
  int AddLane(const std::string& name);

  // Records that `lane` did `name` for `duration_us` from `start_us` (of NowUs). Events of a lane
  // must nest or follow each other. `args` are shown when the event is selected.
  void Complete(int lane, const std::string& name, double start_us, double duration_us,
                absl::Span<const MetricValue> args = {});

  // Hands what was recorded to the system; call at the end of a step.
  void Flush();

 private:
  TraceWriter(AppendFile file, int rank, double origin_us)
      : file_(std::move(file)), rank_(rank), origin_us_(origin_us) {}

  void Add(const std::string& event);

  std::mutex mutex_;
  AppendFile file_;
  const int rank_;
  const double origin_us_;
  int num_lanes_ = 0;
  std::string buffer_;
};

// Records the time from its construction to its end. Without a writer it costs a comparison.
class TraceSpan {
 public:
  TraceSpan(TraceWriter* writer, int lane, const char* name)
      : writer_(writer), lane_(lane), name_(name), start_us_(writer ? TraceWriter::NowUs() : 0) {}
  ~TraceSpan() {
    if (writer_) writer_->Complete(lane_, name_, start_us_, TraceWriter::NowUs() - start_us_);
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceWriter* writer_;
  int lane_;
  const char* name_;
  double start_us_;
};

}  // namespace evenkeel
