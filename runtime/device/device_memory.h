// Memory of the current GPU, for the owners of tensors. Free of CUDA's headers: builds without CUDA
// see the declarations and never call them (kWithCuda).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace evenkeel {

class CudaDevice;

// Returns zero-filled memory, aligned to 256 bytes; waits for the device. Fails with
// kResourceExhausted if there is not enough.
absl::StatusOr<void*> AllocateDeviceMemory(int64_t bytes);
void FreeDeviceMemory(void* memory);

// Enqueues zeros on the device's compute stream.
void ZeroDeviceMemory(CudaDevice& device, void* memory, int64_t bytes);

// Address space of the device, to which memory is added from the front as it is needed and never
// given back: what grew in the first steps is there in all later ones, so that a steady step
// allocates nothing.
class DeviceRange {
 public:
  // A shared pointer, so that its holder need not see the destructor, which builds without CUDA
  // lack.
  static absl::StatusOr<std::shared_ptr<DeviceRange>> Reserve(int64_t capacity_bytes);

  DeviceRange(const DeviceRange&) = delete;
  DeviceRange& operator=(const DeviceRange&) = delete;
  ~DeviceRange();

  // Makes the first `bytes` usable. Fails with kResourceExhausted if the device has no more memory,
  // and leaves what was usable as it was.
  absl::Status Grow(int64_t bytes);

  char* data() const { return data_; }

 private:
  struct Piece {
    uint64_t handle;  // CUmemGenericAllocationHandle
    int64_t bytes;
  };

  DeviceRange() = default;

  char* data_ = nullptr;
  int64_t capacity_ = 0;
  int64_t usable_ = 0;
  int64_t granularity_ = 0;
  int device_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace evenkeel
