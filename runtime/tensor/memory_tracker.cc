#include "runtime/tensor/memory_tracker.h"

#include "absl/strings/str_format.h"

namespace evenkeel {
namespace {

void RaiseTo(std::atomic<int64_t>& peak, int64_t value) {
  int64_t seen = peak.load();
  while (seen < value && !peak.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

const char* NameOf(MemoryPurpose purpose) {
  switch (purpose) {
    case MemoryPurpose::kWeights:
      return "weights";
    case MemoryPurpose::kGradients:
      return "gradients";
    case MemoryPurpose::kOptimizer:
      return "optimizer";
    case MemoryPurpose::kActivations:
      return "activations";
    case MemoryPurpose::kWorkspace:
      return "workspace";
    case MemoryPurpose::kCache:
      return "cache";
    case MemoryPurpose::kCommunication:
      return "communication";
    case MemoryPurpose::kCount:
      break;
  }
  return "?";
}

void MemoryTracker::Add(MemoryPurpose purpose, int64_t bytes) {
  Count& count = counts_[static_cast<size_t>(purpose)];
  RaiseTo(count.peak, count.current.fetch_add(bytes) + bytes);
  RaiseTo(total_peak_, total_.fetch_add(bytes) + bytes);
}

int64_t MemoryTracker::current(MemoryPurpose purpose) const {
  return counts_[static_cast<size_t>(purpose)].current.load();
}

int64_t MemoryTracker::peak(MemoryPurpose purpose) const {
  return counts_[static_cast<size_t>(purpose)].peak.load();
}

std::string MemoryTracker::Report() const {
  std::string table = absl::StrFormat("%-15s %12s %12s\n", "memory", "now", "peak");
  for (int i = 0; i < static_cast<int>(MemoryPurpose::kCount); ++i) {
    const auto purpose = static_cast<MemoryPurpose>(i);
    if (peak(purpose) == 0) continue;
    absl::StrAppendFormat(&table, "%-15s %12s %12s\n", NameOf(purpose),
                          FormatBytes(current(purpose)), FormatBytes(peak(purpose)));
  }
  absl::StrAppendFormat(&table, "%-15s %12s %12s\n", "total", FormatBytes(current_total()),
                        FormatBytes(peak_total()));
  return table;
}

std::string FormatBytes(int64_t bytes) {
  const double b = static_cast<double>(bytes);
  if (bytes >= int64_t{1} << 30) return absl::StrFormat("%.2f GiB", b / (1 << 30));
  if (bytes >= int64_t{1} << 20) return absl::StrFormat("%.1f MiB", b / (1 << 20));
  if (bytes >= int64_t{1} << 10) return absl::StrFormat("%.1f KiB", b / (1 << 10));
  return absl::StrFormat("%d B", bytes);
}

}  // namespace evenkeel
