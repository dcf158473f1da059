// CUDA events that are used again. Creating one costs some microseconds and, inside a driver that
// is busy, much more; a step of training uses thousands.
#pragma once

#include <cuda_runtime_api.h>

#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

class CudaEventPool;

// An event on loan from a pool, which must outlive it. Movable, not copyable. It may go back, and
// be recorded anew, while streams still wait for it: they wait for what was recorded at the time of
// their cudaStreamWaitEvent.
class CudaEvent {
 public:
  CudaEvent() = default;
  CudaEvent(CudaEvent&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(event_, other.event_);
    return *this;
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent();

  cudaEvent_t get() const { return event_; }

  // Returns whether the device has passed the event, which must have been recorded (CUDA says yes
  // of one that never was). Also if the device has failed: then nothing will come any more.
  bool IsComplete() const;

 private:
  friend class CudaEventPool;
  CudaEvent(CudaEventPool* pool, cudaEvent_t event) : pool_(pool), event_(event) {}

  CudaEventPool* pool_ = nullptr;
  cudaEvent_t event_ = nullptr;
};

// Thread-safe. For the current device of the threads that use it.
class CudaEventPool {
 public:
  // `flags` as of cudaEventCreateWithFlags: cudaEventDisableTiming for events that only order.
  explicit CudaEventPool(unsigned flags) : flags_(flags) {}
  CudaEventPool(const CudaEventPool&) = delete;
  CudaEventPool& operator=(const CudaEventPool&) = delete;
  ~CudaEventPool();

  absl::StatusOr<CudaEvent> Take();

 private:
  friend class CudaEvent;
  void Return(cudaEvent_t event);

  unsigned flags_;
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

}  // namespace evenkeel
