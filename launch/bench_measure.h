// What the benchmarks of `evenkeel bench` share: timing an op, and a table in nccl-tests' manner
// whose rows appear as they are measured.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

struct TimingOptions {
  int64_t runs = 5;
  // Runs stop after so long, where a run takes seconds; the first is always finished.
  double max_seconds = 20;
};

// Median seconds of a call of `body` over the runs, after one call to warm up. Calls too short for
// the host's clock are timed many at a time. On a GPU from an idle stream to an idle stream.
absl::StatusOr<double> MedianSeconds(const OpContext& context, const TimingOptions& options,
                                     const std::function<void()>& body);

// Seconds of a pass of the op, and the FLOPs that count.
struct PassTime {
  double seconds = 0;
  double flops = 0;
};

// Forward, backward, both.
class BenchTable {
 public:
  // `shape`: headers of the columns before the times. Shares are of `peak_flops` a second; rates
  // are in GFLOP/s on the CPU, in TFLOP/s on a GPU.
  BenchTable(const OpContext& context, std::vector<std::string> shape, double peak_flops);

  void PrintHeader() const;
  void PrintRow(const std::vector<int64_t>& shape, const PassTime& forward,
                const PassTime& backward, const PassTime& both) const;
  // A rate in the table's unit: "812.3 GFLOP/s".
  std::string RateText(double flops) const;

 private:
  std::vector<std::string> shape_;
  double peak_flops_;
  double unit_;
  const char* unit_name_;
};

// What is measured on: "NVIDIA H100 80GB HBM3", or the processor's name.
std::string DeviceName(const OpContext& context);
// "bfloat16", "float32".
const char* DTypeName(DType dtype);
// Now, as "2026-11-27T05:30:00Z".
std::string UtcNow();

}  // namespace evenkeel
