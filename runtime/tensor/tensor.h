// The owner of a tensor's memory. Long-lived tensors (weights, gradients, optimizer state, caches)
// own their memory; activations live in an Arena instead.
#pragma once

#include "absl/status/statusor.h"
#include "runtime/tensor/memory_tracker.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// Owns a dense, zero-initialised tensor, aligned to 64 bytes, in host memory or in that of the
// current GPU. Movable, not copyable: copies are calls that say so. A default tensor is empty. The
// tracker must outlive it.
class Tensor {
 public:
  // Fails with kResourceExhausted, naming purpose and size, if the memory is not to be had.
  static absl::StatusOr<Tensor> Create(DType dtype, Shape shape, MemoryPurpose purpose,
                                       MemoryTracker& tracker, Device device = Device::kCpu);

  Tensor() = default;
  Tensor(Tensor&& other) noexcept { Swap(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    Swap(other);
    return *this;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor();

  bool empty() const { return view_.empty(); }
  const TensorView& view() { return view_; }
  ConstTensorView view() const { return view_; }
  const Shape& shape() const { return view_.shape; }
  DType dtype() const { return view_.dtype; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  void Swap(Tensor& other) noexcept;

  TensorView view_;
  int64_t num_bytes_ = 0;
  MemoryPurpose purpose_ = MemoryPurpose::kWeights;
  MemoryTracker* tracker_ = nullptr;
};

}  // namespace evenkeel
