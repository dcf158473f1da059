#include "runtime/tensor/arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"

namespace evenkeel {
namespace {

constexpr int64_t kAlignment = 64;

int64_t Aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

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

Arena::Arena(Arena&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)),
      offset_(std::exchange(other.offset_, 0)),
      blocks_(std::move(other.blocks_)),
      tracker_(other.tracker_) {
  other.blocks_.clear();
}

Arena::~Arena() {
  if (base_ == nullptr) return;
  Release(Mark{});
  (void)munmap(base_, static_cast<size_t>(capacity_));
}

TensorView Arena::Allocate(DType dtype, Shape shape, MemoryPurpose purpose) {
  const int64_t bytes = Aligned(shape.num_elements() * SizeOf(dtype));
  if (bytes > capacity_ - offset_) {
    // No caller in the middle of a step could do anything but end the run.
    LogError(absl::StrCat("out of memory: ", NameOf(purpose), " ", shape.ToString(), " needs ",
                          FormatBytes(bytes), ", of the arena's ", FormatBytes(capacity_), " ",
                          FormatBytes(offset_), " are in use\n", tracker_->Report()));
    std::_Exit(static_cast<int>(ExitCode::kOutOfMemory));
  }
  void* data = base_ + offset_;
  offset_ += bytes;
  blocks_.push_back({purpose, bytes});
  tracker_->Add(purpose, bytes);
  return TensorView(data, dtype, shape);
}

TensorView Arena::AllocateZero(DType dtype, Shape shape, MemoryPurpose purpose) {
  TensorView view = Allocate(dtype, shape, purpose);
  std::memset(view.data, 0, static_cast<size_t>(view.num_elements() * SizeOf(dtype)));
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
