#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/op_timer.h"

namespace evenkeel::cuda {
namespace {

class EventTimer : public OpTimer {
 public:
  explicit EventTimer(CudaDevice& device) : device_(device) {}

  ~EventTimer() override {
    for (const cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  }

  void Begin() override { Record(); }
  void End() override { Record(); }

  double TakeSeconds() override {
    if (num_recorded_ == 0) return 0;
    device_.Note(cudaEventSynchronize(events_[num_recorded_ - 1]), "timer");
    double seconds = 0;
    for (size_t i = 0; i + 1 < num_recorded_; i += 2) {
      float milliseconds = 0;
      device_.Note(cudaEventElapsedTime(&milliseconds, events_[i], events_[i + 1]), "timer");
      seconds += 1e-3 * static_cast<double>(milliseconds);
    }
    num_recorded_ = 0;
    return seconds;
  }

 private:
  void Record() {
    if (num_recorded_ == events_.size()) {
      events_.push_back(nullptr);
      device_.Note(cudaEventCreate(&events_.back()), "timer");
    }
    device_.Note(cudaEventRecord(events_[num_recorded_++], device_.stream()), "timer");
  }

  CudaDevice& device_;
  std::vector<cudaEvent_t>
      events_;  // begin and end of each span; those past the recorded are spare
  size_t num_recorded_ = 0;
};

}  // namespace

std::unique_ptr<OpTimer> MakeOpTimer(const OpContext& context) {
  return std::make_unique<EventTimer>(*context.cuda->device);
}

}  // namespace evenkeel::cuda
