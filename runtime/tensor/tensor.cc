#include "runtime/tensor/tensor.h"

#include <sys/mman.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/with_cuda.h"
#include "runtime/device/device_memory.h"

namespace evenkeel {
namespace {

size_t MappedBytes(int64_t bytes) {
  return static_cast<size_t>(bytes > 0 ? bytes : 1);
}

// Pages of an anonymous mapping are zero and page-aligned. Null if there is no memory.
void* AllocateHostMemory(int64_t bytes) {
  void* memory =
      mmap(nullptr, MappedBytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  (void)madvise(memory, MappedBytes(bytes), MADV_HUGEPAGE);
  return memory;
}

}  // namespace

absl::StatusOr<Tensor> Tensor::Create(DType dtype, Shape shape, MemoryPurpose purpose,
                                      MemoryTracker& tracker, Device device) {
  const int64_t bytes = shape.num_elements() * SizeOf(dtype);
  EK_CHECK(bytes >= 0) << shape.ToString();
  void* memory = nullptr;
  if (device == Device::kCpu) {
    memory = AllocateHostMemory(bytes);
  } else if constexpr (kWithCuda) {
    absl::StatusOr<void*> allocated = AllocateDeviceMemory(bytes);
    if (!allocated.ok() && !absl::IsResourceExhausted(allocated.status())) {
      return allocated.status();
    }
    if (allocated.ok()) memory = *allocated;
  }
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no ", device == Device::kCuda ? "GPU " : "", "memory for ", NameOf(purpose),
                     " ", shape.ToString(), ": ", FormatBytes(bytes), " asked for, ",
                     FormatBytes(tracker.current_total()), " in use by this rank"));
  }
  Tensor tensor;
  tensor.view_ = TensorView(memory, dtype, shape, device);
  tensor.num_bytes_ = bytes;
  tensor.purpose_ = purpose;
  tensor.tracker_ = &tracker;
  tracker.Add(purpose, bytes);
  return tensor;
}

Tensor::~Tensor() {
  if (view_.empty()) return;
  if (view_.device == Device::kCpu) {
    (void)munmap(view_.data, MappedBytes(num_bytes_));
  } else if constexpr (kWithCuda) {
    FreeDeviceMemory(view_.data);
  }
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
