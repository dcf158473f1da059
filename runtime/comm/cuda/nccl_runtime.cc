#include "runtime/comm/cuda/nccl_runtime.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/cuda/nccl_communicator.h"
#include "runtime/comm/cuda/nccl_context.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {

absl::StatusOr<NcclRuntime> NcclRuntime::Create(Communicator& bootstrap,
                                                const NcclOptions& options) {
  EK_RETURN_IF_ERROR(
      ToStatus(cudaSetDevice(options.device), absl::StrCat("cudaSetDevice ", options.device)));
  if (options.shares_device) {
    // NCCL refuses two ranks on one device of one host, and knows hosts by this name.
    setenv("NCCL_HOSTID", absl::StrCat("evenkeel-rank", bootstrap.rank()).c_str(), 0);
  }
  auto context = std::make_shared<NcclContext>(options);
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> world,
                      NcclCommunicator::Create(&bootstrap, nullptr, "world", context));
  return NcclRuntime(std::move(context), std::move(world));
}

NcclRuntime::NcclRuntime(std::shared_ptr<NcclContext> context, std::unique_ptr<Communicator> world)
    : context_(std::move(context)), world_(std::move(world)) {}

NcclRuntime::NcclRuntime(NcclRuntime&&) noexcept = default;
NcclRuntime::~NcclRuntime() = default;

absl::Status NcclRuntime::status() const {
  return context_->watchdog().status();
}

double NcclRuntime::TakeExposedSeconds() {
  return context_->compute_waits().TakeSeconds();
}

absl::Status NcclRuntime::StartTrace() {
  return context_->trace().Start(context_->options().compute_stream);
}

std::vector<TraceEvent> NcclRuntime::TakeTrace() {
  return context_->trace().Take();
}

void NcclRuntime::StopTrace() {
  context_->trace().Stop();
}

}  // namespace evenkeel
