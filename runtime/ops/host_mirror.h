// A long-lived tensor as the host reads or fills it, for checkpoints and initial weights. On the
// CPU it is the tensor itself; for one on a GPU it is a copy, kept up to date by calls that say so.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/ops/op_context.h"
#include "runtime/tensor/tensor.h"

namespace evenkeel {

// Borrows the tensor. The copy's memory is the host's and is not counted with the rank's.
class HostMirror {
 public:
  // A copy begins as zeros. Fails with kResourceExhausted if the host has no memory for it.
  static absl::StatusOr<HostMirror> Create(const OpContext& context, Tensor& tensor);

  const TensorView& view() { return host_; }

  // Fills the view from the tensor, waiting for what was enqueued before.
  absl::Status Download(const OpContext& context);
  // Fills the tensor from the view.
  absl::Status Upload(const OpContext& context);

 private:
  HostMirror() = default;

  std::unique_ptr<MemoryTracker> tracker_;
  TensorView device_;
  Tensor copy_;  // empty on the CPU
  TensorView host_;
};

}  // namespace evenkeel
