#include "runtime/comm/cuda/nccl_work.h"

#include <string>

#include "runtime/base/log.h"

namespace evenkeel {

NcclWork::~NcclWork() {
  if (has_waited_ || context_->watchdog().has_failed()) return;
  if (const absl::Status status = Wait(); !status.ok()) LogError(std::string(status.message()));
}

bool NcclWork::Test() {
  return context_->watchdog().has_failed() || events_->end.IsComplete();
}

absl::Status NcclWork::Wait() {
  if (context_->watchdog().has_failed()) return context_->watchdog().status();
  if (has_waited_) return absl::OkStatus();
  has_waited_ = true;
  const absl::Status status = context_->compute_waits().Wait(events_->end);
  if (status.ok()) return status;
  context_->watchdog().Fail(status);
  return context_->watchdog().status();
}

}  // namespace evenkeel
