#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel::cuda {
namespace {

class EventTrace : public StepTrace {
 public:
  explicit EventTrace(CudaDevice& device) : device_(device) {
    // The device's clock against the host's: what was recorded just before the host was told.
    origin_ = NewEvent();
    Record(origin_);
    device_.Note(cudaEventSynchronize(origin_), "trace");
    origin_us_ = std::chrono::duration<double, std::micro>(
                     std::chrono::steady_clock::now().time_since_epoch())
                     .count();
  }

  ~EventTrace() override {
    for (const Span& span : spans_) {
      free_.push_back(span.begin);
      if (span.end != nullptr) free_.push_back(span.end);
    }
    for (cudaEvent_t event : free_) (void)cudaEventDestroy(event);
    (void)cudaEventDestroy(origin_);
  }

  void Begin(const char* name) override {
    open_.push_back(spans_.size());
    spans_.push_back({name, NewEvent(), nullptr});
    Record(spans_.back().begin);
  }

  void End() override {
    Span& span = spans_[open_.back()];
    open_.pop_back();
    span.end = NewEvent();
    Record(span.end);
  }

  std::vector<TraceEvent> Take() override {
    std::vector<TraceEvent> events;
    std::vector<Span> left;
    for (Span& span : spans_) {
      if (span.end == nullptr) {
        left.push_back(std::move(span));
        continue;
      }
      float since_origin_ms = 0, duration_ms = 0;
      device_.Note(cudaEventElapsedTime(&since_origin_ms, origin_, span.begin), "trace");
      device_.Note(cudaEventElapsedTime(&duration_ms, span.begin, span.end), "trace");
      events.push_back({std::move(span.name),
                        origin_us_ + 1e3 * static_cast<double>(since_origin_ms),
                        1e3 * static_cast<double>(duration_ms)});
      free_.push_back(span.begin);
      free_.push_back(span.end);
    }
    EK_CHECK(left.size() == open_.size());
    for (size_t i = 0; i < open_.size(); ++i) open_[i] = i;
    spans_ = std::move(left);
    return events;
  }

 private:
  struct Span {
    std::string name;
    cudaEvent_t begin;
    cudaEvent_t end;  // null while open
  };

  cudaEvent_t NewEvent() {
    if (free_.empty()) {
      cudaEvent_t event = nullptr;
      device_.Note(cudaEventCreate(&event), "trace");
      return event;
    }
    cudaEvent_t event = free_.back();
    free_.pop_back();
    return event;
  }
  void Record(cudaEvent_t event) {
    device_.Note(cudaEventRecord(event, device_.stream()), "trace");
  }

  CudaDevice& device_;
  cudaEvent_t origin_ = nullptr;
  double origin_us_ = 0;
  std::vector<Span> spans_;  // in the order of their beginnings
  std::vector<size_t> open_;
  std::vector<cudaEvent_t> free_;
};

}  // namespace

std::unique_ptr<StepTrace> MakeStepTrace(const OpContext& context) {
  return std::make_unique<EventTrace>(*context.cuda->device);
}

void PushRange(const char* name) {
  nvtxRangePushA(name);
}

void PopRange() {
  nvtxRangePop();
}

}  // namespace evenkeel::cuda
