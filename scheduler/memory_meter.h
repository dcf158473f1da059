// Counts what is on a stack of allocations, and its peak: an arena without memory.
#pragma once

#include <algorithm>
#include <cstdint>

namespace evenkeel {

class MemoryMeter {
 public:
  void Add(int64_t bytes) {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  int64_t now() const { return now_; }
  int64_t peak() const { return peak_; }
  void Release(int64_t mark) { now_ = mark; }

 private:
  int64_t now_ = 0;
  int64_t peak_ = 0;
};

// Gives back at its end what was added since its start.
class MeterScope {
 public:
  explicit MeterScope(MemoryMeter& meter) : meter_(meter), mark_(meter.now()) {}
  ~MeterScope() { meter_.Release(mark_); }
  MeterScope(const MeterScope&) = delete;
  MeterScope& operator=(const MeterScope&) = delete;

 private:
  MemoryMeter& meter_;
  int64_t mark_;
};

}  // namespace evenkeel
