#include "runtime/ops/step_trace.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel {
namespace {

double NowUs() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class ClockTrace : public StepTrace {
 public:
  void Begin(const char* name) override { open_.push_back({name, NowUs(), 0}); }
  void End() override {
    EK_CHECK(!open_.empty());
    open_.back().duration_us = NowUs() - open_.back().start_us;
    done_.push_back(std::move(open_.back()));
    open_.pop_back();
  }
  std::vector<TraceEvent> Take() override {
    std::stable_sort(done_.begin(), done_.end(), [](const TraceEvent& a, const TraceEvent& b) {
      return a.start_us < b.start_us;
    });
    return std::exchange(done_, {});
  }

 private:
  std::vector<TraceEvent> open_, done_;
};

}  // namespace

std::unique_ptr<StepTrace> MakeStepTrace(const OpContext& context) {
  EK_PASS_ON_TO_CUDA(context, MakeStepTrace(context))
  return std::make_unique<ClockTrace>();
}

TraceScope::TraceScope(const OpContext& context, const char* noun, size_t index, const char* verb)
    : context_(context) {
  if (context.trace == nullptr && context.cuda == nullptr) return;
  Open(absl::StrCat(noun, " ", index, " ", verb).c_str());
}

void TraceScope::Open(const char* name) {
  if constexpr (kWithCuda) {
    if (context_.cuda != nullptr) cuda::PushRange(name);
  }
  if (context_.trace != nullptr) context_.trace->Begin(name);
}

TraceScope::~TraceScope() {
  if (context_.trace != nullptr) context_.trace->End();
  if constexpr (kWithCuda) {
    if (context_.cuda != nullptr) cuda::PopRange();
  }
}

}  // namespace evenkeel
