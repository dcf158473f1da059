#include "runtime/tensor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/with_cuda.h"

namespace evenkeel {
namespace {

// A cache line; on a GPU, what the widest transfers and cuBLASLt want.
constexpr int64_t kHostAlignment = 64, kGpuAlignment = 256;

}  // namespace

absl::StatusOr<Arena> Arena::Create(int64_t capacity_bytes, MemoryTracker& tracker) {
  void* base = mmap(nullptr, static_cast<size_t>(capacity_bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot reserve ", FormatBytes(capacity_bytes), " of address space"));
  }
  (void)madvise(base, static_cast<size_t>(capacity_bytes), MADV_HUGEPAGE);
  return Arena(static_cast<char*>(base), capacity_bytes, &tracker);
}

absl::StatusOr<Arena> Arena::CreateOnGpu(CudaDevice& gpu, int64_t capacity_bytes,
                                         MemoryTracker& tracker) {
  if constexpr (kWithCuda) {
    EK_ASSIGN_OR_RETURN(std::shared_ptr<DeviceRange> range, DeviceRange::Reserve(capacity_bytes));
    Arena arena(range->data(), capacity_bytes, &tracker);
    arena.gpu_ = &gpu;
    arena.range_ = std::move(range);
    return arena;
  }
  return absl::UnimplementedError("this program was built without CUDA");
}

Arena::Arena(Arena&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)),
      offset_(std::exchange(other.offset_, 0)),
      peak_(std::exchange(other.peak_, 0)),
      gpu_(other.gpu_),
      range_(std::move(other.range_)),
      blocks_(std::move(other.blocks_)),
      tracker_(other.tracker_) {
  other.blocks_.clear();
}

Arena::~Arena() {
  if (base_ == nullptr) return;
  Release(Mark{});
  if (gpu_ == nullptr) (void)munmap(base_, static_cast<size_t>(capacity_));
}

TensorView Arena::Allocate(DType dtype, Shape shape, MemoryPurpose purpose) {
  const int64_t alignment = gpu_ == nullptr ? kHostAlignment : kGpuAlignment;
  const int64_t bytes =
      (shape.num_elements() * SizeOf(dtype) + alignment - 1) / alignment * alignment;
  absl::Status status;
  if constexpr (kWithCuda) {
    if (gpu_ != nullptr) status = range_->Grow(std::min(offset_ + bytes, capacity_));
  }
  if (bytes > capacity_ - offset_ || !status.ok()) {
    // No caller in the middle of a step could do anything but end the run.
    LogError(absl::StrCat("out of ", gpu_ != nullptr ? "GPU " : "", "memory: ", NameOf(purpose),
                          " ", shape.ToString(), " needs ", FormatBytes(bytes), ", of the arena's ",
                          FormatBytes(capacity_), " ", FormatBytes(offset_), " are in use",
                          status.ok() ? "" : " and the GPU has no more (",
                          std::string(status.message()), status.ok() ? "\n" : ")\n",
                          tracker_->Report()));
    std::_Exit(static_cast<int>(ExitCode::kOutOfMemory));
  }
  void* data = base_ + offset_;
  offset_ += bytes;
  peak_ = std::max(peak_, offset_);
  blocks_.push_back({purpose, bytes});
  tracker_->Add(purpose, bytes);
  return TensorView(data, dtype, shape, device());
}

TensorView Arena::AllocateZero(DType dtype, Shape shape, MemoryPurpose purpose) {
  TensorView view = Allocate(dtype, shape, purpose);
  const int64_t bytes = view.num_elements() * SizeOf(dtype);
  if (gpu_ == nullptr) {
    std::memset(view.data, 0, static_cast<size_t>(bytes));
  } else if constexpr (kWithCuda) {
    ZeroDeviceMemory(*gpu_, view.data, bytes);
  }
  return view;
}

void Arena::Release(const Mark& mark) {
  EK_CHECK(mark.num_blocks <= blocks_.size() && mark.offset <= offset_);
  while (blocks_.size() > mark.num_blocks) {
    tracker_->Add(blocks_.back().purpose, -blocks_.back().bytes);
    blocks_.pop_back();
  }
  offset_ = mark.offset;
}

}  // namespace evenkeel
