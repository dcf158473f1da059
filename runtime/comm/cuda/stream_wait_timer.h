// Measures on the device how long a stream stands still for events of other streams: communication
// that computing does not hide.
#pragma once

#include <cuda_runtime_api.h>

#include <deque>

#include "absl/status/status.h"
#include "runtime/comm/cuda/cuda_event_pool.h"

namespace evenkeel {

// Not thread-safe.
class StreamWaitTimer {
 public:
  explicit StreamWaitTimer(cudaStream_t stream) : stream_(stream) {}

  // Makes the stream wait for `event`, between two time stamps. Does not block the host.
  absl::Status Wait(const CudaEvent& event);

  // Returns the seconds of the waits that have ended since the last call. A wait for an event that
  // was over already measures as a few microseconds or as nothing.
  double TakeSeconds();

 private:
  struct Lap {
    CudaEvent begin, end;
  };

  // Adds up and forgets the waits that have ended.
  void Collect();

  cudaStream_t stream_;
  CudaEventPool events_{cudaEventDefault};
  std::deque<Lap> laps_;  // in the order of the stream
  double seconds_ = 0;
};

}  // namespace evenkeel
