#include "launch/bench_measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "absl/strings/str_format.h"
#include "launch/machine.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

constexpr double kMinRunSeconds = 2e-3;
constexpr int kShapeWidth = 9, kTimeWidth = 11, kRateWidth = 9, kShareWidth = 6;
constexpr const char* kPasses[] = {"forward", "backward", "both"};

}  // namespace

absl::StatusOr<double> MedianSeconds(const OpContext& context, const TimingOptions& options,
                                     const std::function<void()>& body) {
  const auto time = [&](int64_t calls) -> absl::StatusOr<double> {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) body();
    EK_RETURN_IF_ERROR(WaitForOps(context));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  EK_RETURN_IF_ERROR(WaitForOps(context));
  EK_ASSIGN_OR_RETURN(const double first, time(1));
  const auto calls = static_cast<int64_t>(
      std::min(1000.0, std::max(1.0, std::ceil(kMinRunSeconds / std::max(first, 1e-9)))));
  std::vector<double> seconds;
  double total = first;
  do {
    EK_ASSIGN_OR_RETURN(const double run, time(calls));
    total += run;
    seconds.push_back(run / static_cast<double>(calls));
  } while (static_cast<int64_t>(seconds.size()) < options.runs && total < options.max_seconds);
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

BenchTable::BenchTable(const OpContext& context, std::vector<std::string> shape, double peak_flops)
    : shape_(std::move(shape)),
      peak_flops_(peak_flops),
      unit_(context.cuda == nullptr ? 1e9 : 1e12),
      unit_name_(context.cuda == nullptr ? "GFLOP/s" : "TFLOP/s") {}

std::string BenchTable::RateText(double flops) const {
  return absl::StrFormat("%.1f %s", flops / unit_, unit_name_);
}

void BenchTable::PrintHeader() const {
  std::string passes = "#", names = "#";
  for (size_t i = 0; i < shape_.size(); ++i) {
    absl::StrAppendFormat(&names, "%*s", kShapeWidth - (i == 0 ? 1 : 0), shape_[i]);
  }
  passes.resize(names.size(), ' ');
  for (const char* pass : kPasses) {
    absl::StrAppendFormat(&passes, "%*s", kTimeWidth + kRateWidth + kShareWidth, pass);
    absl::StrAppendFormat(&names, "%*s%*s%*s", kTimeWidth, "ms", kRateWidth, unit_name_,
                          kShareWidth, "%");
  }
  std::printf("%s\n%s\n", passes.c_str(), names.c_str());
  std::fflush(stdout);
}

void BenchTable::PrintRow(const std::vector<int64_t>& shape, const PassTime& forward,
                          const PassTime& backward, const PassTime& both) const {
  std::string row;
  for (const int64_t size : shape) absl::StrAppendFormat(&row, "%*d", kShapeWidth, size);
  for (const PassTime& pass : {forward, backward, both}) {
    const double rate = pass.flops / pass.seconds;
    absl::StrAppendFormat(&row, "%*.3f%*.1f%*.1f", kTimeWidth, pass.seconds * 1e3, kRateWidth,
                          rate / unit_, kShareWidth, 100 * rate / peak_flops_);
  }
  std::printf("%s\n", row.c_str());
  std::fflush(stdout);
}

std::string DeviceName(const OpContext& context) {
  return context.cuda == nullptr ? CpuName() : FactsOf(*context.cuda).name;
}

const char* DTypeName(DType dtype) {
  return dtype == DType::kBF16 ? "bfloat16" : dtype == DType::kF64 ? "float64" : "float32";
}

std::string UtcNow() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  char text[32] = "";
  if (gmtime_r(&now, &utc) != nullptr) {
    (void)std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  }
  return text;
}

}  // namespace evenkeel
