// Memory for what lives within one training step: activations and workspace. Allocation is a bump
// of a pointer and release goes back to an earlier mark, which fits the step: the forward pass
// stacks up what the backward pass takes down in reverse order. No page is faulted in twice.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/device/device_memory.h"
#include "runtime/tensor/memory_tracker.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// Reserves address space at creation; memory is added as it is first needed, and stays, on the host
// and on a GPU alike. On a GPU a released part may be handed out again while kernels still use it:
// all users of an arena enqueue on one stream. Not thread-safe. The tracker must outlive it.
class Arena {
 public:
  // A position to release back to.
  struct Mark {
    int64_t offset = 0;
    size_t num_blocks = 0;
  };

  // `capacity_bytes` bounds what can be in use at once; it costs address space, not memory.
  static absl::StatusOr<Arena> Create(int64_t capacity_bytes, MemoryTracker& tracker);
  // The same in the memory of a GPU, which must outlive the arena.
  static absl::StatusOr<Arena> CreateOnGpu(CudaDevice& gpu, int64_t capacity_bytes,
                                           MemoryTracker& tracker);

  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&&) = delete;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Returns an uninitialised tensor, aligned to 64 bytes (256 on a GPU). Exhaustion ends the
  // process with ExitCode::kOutOfMemory and a memory report: a run is checked against its plan
  // before it starts.
  TensorView Allocate(DType dtype, Shape shape, MemoryPurpose purpose);

  // The same, filled with zeros.
  TensorView AllocateZero(DType dtype, Shape shape, MemoryPurpose purpose);

  Mark mark() const { return {offset_, blocks_.size()}; }
  // Gives back everything allocated since `mark`.
  void Release(const Mark& mark);

  int64_t bytes_in_use() const { return offset_; }
  // The most that was in use at once, which is the memory that stays.
  int64_t peak_bytes() const { return peak_; }
  int64_t capacity() const { return capacity_; }
  Device device() const { return gpu_ == nullptr ? Device::kCpu : Device::kCuda; }

 private:
  struct Block {
    MemoryPurpose purpose;
    int64_t bytes;
  };

  Arena(char* base, int64_t capacity, MemoryTracker* tracker)
      : base_(base), capacity_(capacity), tracker_(tracker) {}

  char* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t offset_ = 0;
  int64_t peak_ = 0;
  CudaDevice* gpu_ = nullptr;           // null: host memory, mapped by this object
  std::shared_ptr<DeviceRange> range_;  // on a GPU: the memory
  std::vector<Block> blocks_;
  MemoryTracker* tracker_ = nullptr;
};

// Releases an arena to where it stood at construction.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.Release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace evenkeel
