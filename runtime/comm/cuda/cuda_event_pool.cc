#include "runtime/comm/cuda/cuda_event_pool.h"

#include "runtime/base/status_macros.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) pool_->Return(event_);
}

bool CudaEvent::IsComplete() const {
  if (cudaEventQuery(event_) != cudaErrorNotReady) return true;
  // Not an error, but it is left behind as this thread's last one, where the next kernel launch
  // would find it.
  (void)cudaGetLastError();
  return false;
}

CudaEventPool::~CudaEventPool() {
  for (const cudaEvent_t event : free_) (void)cudaEventDestroy(event);
}

absl::StatusOr<CudaEvent> CudaEventPool::Take() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      const cudaEvent_t event = free_.back();
      free_.pop_back();
      return CudaEvent(this, event);
    }
  }
  cudaEvent_t event = nullptr;
  EK_RETURN_IF_ERROR(ToStatus(cudaEventCreateWithFlags(&event, flags_), "cudaEventCreate"));
  return CudaEvent(this, event);
}

void CudaEventPool::Return(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(event);
}

}  // namespace evenkeel
