#include "runtime/comm/cuda/stream_wait_timer.h"

#include <utility>

#include "runtime/base/status_macros.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

// Waits that may be open before those that have ended are added up, lest events pile up where
// nobody asks for the sum.
constexpr size_t kMaxLaps = 256;

}  // namespace

absl::Status StreamWaitTimer::Wait(const CudaEvent& event) {
  if (event.IsComplete()) return absl::OkStatus();  // and what it wrote is visible to later work
  if (laps_.size() >= kMaxLaps) Collect();
  EK_ASSIGN_OR_RETURN(CudaEvent begin, events_.Take());
  EK_ASSIGN_OR_RETURN(CudaEvent end, events_.Take());
  EK_RETURN_IF_ERROR(ToStatus(cudaEventRecord(begin.get(), stream_), "cudaEventRecord"));
  EK_RETURN_IF_ERROR(ToStatus(cudaStreamWaitEvent(stream_, event.get(), 0), "cudaStreamWaitEvent"));
  EK_RETURN_IF_ERROR(ToStatus(cudaEventRecord(end.get(), stream_), "cudaEventRecord"));
  laps_.push_back({std::move(begin), std::move(end)});
  return absl::OkStatus();
}

double StreamWaitTimer::TakeSeconds() {
  Collect();
  return std::exchange(seconds_, 0.0);
}

void StreamWaitTimer::Collect() {
  while (!laps_.empty() && laps_.front().end.IsComplete()) {
    float milliseconds = 0;
    const Lap& lap = laps_.front();
    if (cudaEventElapsedTime(&milliseconds, lap.begin.get(), lap.end.get()) == cudaSuccess) {
      seconds_ += static_cast<double>(milliseconds) * 1e-3;
    }
    laps_.pop_front();
  }
}

}  // namespace evenkeel
