// Counts the bytes in use and their peak by purpose, so that "where did the memory go" and "why did
// it not fit" have an answer. One tracker a rank; safe from several threads.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

namespace evenkeel {

enum class MemoryPurpose : int {
  kWeights,
  kGradients,
  kOptimizer,
  kActivations,
  kWorkspace,
  kCache,
  kCommunication,
  kCount,
};

const char* NameOf(MemoryPurpose purpose);

class MemoryTracker {
 public:
  void Add(MemoryPurpose purpose, int64_t bytes);  // negative to give back

  int64_t current(MemoryPurpose purpose) const;
  int64_t peak(MemoryPurpose purpose) const;
  int64_t current_total() const { return total_.load(); }
  int64_t peak_total() const { return total_peak_.load(); }

  // A table: purpose, bytes now, peak.
  std::string Report() const;

 private:
  struct Count {
    std::atomic<int64_t> current{0};
    std::atomic<int64_t> peak{0};
  };

  std::array<Count, static_cast<size_t>(MemoryPurpose::kCount)> counts_;
  std::atomic<int64_t> total_{0};
  std::atomic<int64_t> total_peak_{0};
};

// "1.50 GiB", "20.0 MiB", "512 B"
std::string FormatBytes(int64_t bytes);

}  // namespace evenkeel
