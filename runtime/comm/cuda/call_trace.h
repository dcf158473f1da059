// The spans of NCCL's calls on the device, for a timeline.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/trace_event.h"
#include "runtime/comm/cuda/cuda_event_pool.h"
#include "runtime/comm/cuda/nccl_call_events.h"

namespace evenkeel {

// Not thread-safe.
class CallTrace {
 public:
  // Begins to keep calls. Waits for `stream`, to compare the device's clock with the host's.
  absl::Status Start(cudaStream_t stream);
  void Stop();
  bool is_on() const { return is_on_; }

  void Add(std::string text, std::shared_ptr<const NcclCallEvents> events) {
    calls_.push_back({std::move(text), std::move(events)});
  }

  // Returns the calls that have ended since the last time, in the order they were made.
  std::vector<TraceEvent> Take();

 private:
  struct Call {
    std::string text;
    std::shared_ptr<const NcclCallEvents> events;
  };

  bool is_on_ = false;
  CudaEventPool events_{cudaEventDefault};
  CudaEvent origin_;
  double origin_us_ = 0;
  std::vector<Call> calls_;
};

}  // namespace evenkeel
