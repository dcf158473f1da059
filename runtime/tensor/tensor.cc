#include "runtime/tensor/tensor.h"

#include <sys/mman.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace evenkeel {

absl::StatusOr<Tensor> Tensor::Create(DType dtype, Shape shape, MemoryPurpose purpose,
                                      MemoryTracker& tracker) {
  const int64_t bytes = shape.num_elements() * SizeOf(dtype);
  EK_CHECK(bytes >= 0) << shape.ToString();
  // Pages of an anonymous mapping are zero and page-aligned.
  const int64_t mapped = bytes > 0 ? bytes : 1;
  void* memory = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for ", NameOf(purpose), " ", shape.ToString(), ": ", FormatBytes(bytes),
        " asked for, ", FormatBytes(tracker.current_total()), " in use by this rank"));
  }
  (void)madvise(memory, static_cast<size_t>(mapped), MADV_HUGEPAGE);
  Tensor tensor;
  tensor.view_ = TensorView(memory, dtype, shape);
  tensor.num_bytes_ = bytes;
  tensor.purpose_ = purpose;
  tensor.tracker_ = &tracker;
  tracker.Add(purpose, bytes);
  return tensor;
}

Tensor::~Tensor() {
  if (view_.empty()) return;
  (void)munmap(view_.data, static_cast<size_t>(num_bytes_ > 0 ? num_bytes_ : 1));
  tracker_->Add(purpose_, -num_bytes_);
}

void Tensor::Swap(Tensor& other) noexcept {
  std::swap(view_, other.view_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(purpose_, other.purpose_);
  std::swap(tracker_, other.tracker_);
}

std::string Shape::ToString() const {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) absl::StrAppend(&text, i > 0 ? ", " : "", (*this)[i]);
  return text + "]";
}

}  // namespace evenkeel
