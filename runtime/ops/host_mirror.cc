#include "runtime/ops/host_mirror.h"

#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {

absl::StatusOr<HostMirror> HostMirror::Create(const OpContext& context, Tensor& tensor) {
  HostMirror mirror;
  mirror.device_ = mirror.host_ = tensor.view();
  if (context.cuda == nullptr) return mirror;
  mirror.tracker_ = std::make_unique<MemoryTracker>();
  EK_ASSIGN_OR_RETURN(mirror.copy_, Tensor::Create(tensor.dtype(), tensor.shape(),
                                                   MemoryPurpose::kWeights, *mirror.tracker_));
  mirror.host_ = mirror.copy_.view();
  return mirror;
}

absl::Status HostMirror::Download(const OpContext& context) {
  return copy_.empty() ? absl::OkStatus() : CopyToHost(context, device_, host_);
}

absl::Status HostMirror::Upload(const OpContext& context) {
  return copy_.empty() ? absl::OkStatus() : CopyFromHost(context, host_, device_);
}

}  // namespace evenkeel
