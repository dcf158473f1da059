#include "runtime/comm/cuda/call_trace.h"

#include <chrono>
#include <utility>

#include "runtime/base/status_macros.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {

absl::Status CallTrace::Start(cudaStream_t stream) {
  EK_ASSIGN_OR_RETURN(origin_, events_.Take());
  EK_RETURN_IF_ERROR(ToStatus(cudaEventRecord(origin_.get(), stream), "cudaEventRecord"));
  EK_RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(origin_.get()), "cudaEventSynchronize"));
  origin_us_ =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
  is_on_ = true;
  return absl::OkStatus();
}

void CallTrace::Stop() {
  is_on_ = false;
  calls_.clear();
}

std::vector<TraceEvent> CallTrace::Take() {
  std::vector<TraceEvent> events;
  std::vector<Call> left;
  for (Call& call : calls_) {
    float since_origin_ms = 0, duration_ms = 0;
    if (!call.events->end.IsComplete()) {
      left.push_back(std::move(call));
    } else if (cudaEventElapsedTime(&since_origin_ms, origin_.get(), call.events->start.get()) ==
                   cudaSuccess &&
               cudaEventElapsedTime(&duration_ms, call.events->start.get(),
                                    call.events->end.get()) == cudaSuccess) {
      events.push_back({std::move(call.text),
                        origin_us_ + 1e3 * static_cast<double>(since_origin_ms),
                        1e3 * static_cast<double>(duration_ms)});
    }
  }
  calls_ = std::move(left);
  return events;
}

}  // namespace evenkeel
