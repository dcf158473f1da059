#include "runtime/device/device_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "runtime/base/status_macros.h"
#include "runtime/device/cuda_device.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

// Memory is added in steps of this size at least: adding takes the host tens of microseconds.
constexpr int64_t kGrowBytes = int64_t{64} << 20;

// The driver's functions, found at run time so that the program starts where there is no driver.
struct Driver {
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free_address = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  bool found = false;
};

template <typename F>
bool Find(const char* name, F* function) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult result;
  if (cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &result) !=
          cudaSuccess ||
      address == nullptr) {
    return false;
  }
  *function = reinterpret_cast<F>(address);
  return true;
}

const Driver& GetDriver() {
  static const Driver driver = [] {
    Driver d;
    d.found = Find("cuMemAddressReserve", &d.reserve) &&
              Find("cuMemAddressFree", &d.free_address) && Find("cuMemCreate", &d.create) &&
              Find("cuMemRelease", &d.release) && Find("cuMemMap", &d.map) &&
              Find("cuMemUnmap", &d.unmap) && Find("cuMemSetAccess", &d.set_access) &&
              Find("cuMemGetAllocationGranularity", &d.granularity);
    return d;
  }();
  return driver;
}

CUmemAllocationProp PropertiesOf(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

absl::Status ToStatus(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": driver error ", static_cast<int>(result));
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

int64_t RoundUp(int64_t bytes, int64_t step) {
  return (bytes + step - 1) / step * step;
}

}  // namespace

// On a stream of its own, and waits for that alone: another stream may be waiting for a message
// whose sender waits for what this rank does next.
static absl::Status Clear(void* memory, size_t bytes) {
  cudaStream_t stream = nullptr;
  EK_RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"));
  absl::Status status = ToStatus(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
  status.Update(ToStatus(cudaStreamSynchronize(stream), "cudaStreamSynchronize"));
  (void)cudaStreamDestroy(stream);
  return status;
}

absl::StatusOr<void*> AllocateDeviceMemory(int64_t bytes) {
  void* memory = nullptr;
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  if (const absl::Status status = ToStatus(cudaMalloc(&memory, size), "cudaMalloc"); !status.ok()) {
    (void)cudaGetLastError();  // out of memory is not sticky: the caller may go on
    return status;
  }
  absl::Status status = Clear(memory, size);
  if (status.ok()) return memory;
  (void)cudaFree(memory);
  return status;
}

void FreeDeviceMemory(void* memory) {
  (void)cudaFree(memory);
}

void ZeroDeviceMemory(CudaDevice& device, void* memory, int64_t bytes) {
  device.Note(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), device.stream()), "clearing");
}

absl::StatusOr<std::shared_ptr<DeviceRange>> DeviceRange::Reserve(int64_t capacity_bytes) {
  const Driver& driver = GetDriver();
  if (!driver.found) {
    return absl::UnimplementedError("the NVIDIA driver lacks virtual memory management");
  }
  std::shared_ptr<DeviceRange> range(new DeviceRange());
  EK_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&range->device_), "cudaGetDevice"));
  const CUmemAllocationProp properties = PropertiesOf(range->device_);
  size_t granularity = 0;
  EK_RETURN_IF_ERROR(
      ToStatus(driver.granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
               "cuMemGetAllocationGranularity"));
  range->granularity_ = static_cast<int64_t>(granularity);
  range->capacity_ = RoundUp(capacity_bytes, std::max(range->granularity_, kGrowBytes));
  CUdeviceptr address = 0;
  EK_RETURN_IF_ERROR(
      ToStatus(driver.reserve(&address, static_cast<size_t>(range->capacity_), 0, 0, 0),
               "cuMemAddressReserve"));
  range->data_ = reinterpret_cast<char*>(address);
  return range;
}

absl::Status DeviceRange::Grow(int64_t bytes) {
  if (bytes <= usable_) return absl::OkStatus();
  if (bytes > capacity_) return absl::ResourceExhaustedError("address space used up");
  const Driver& driver = GetDriver();
  const int64_t more =
      std::min(capacity_ - usable_, RoundUp(bytes - usable_, std::max(granularity_, kGrowBytes)));
  const CUmemAllocationProp properties = PropertiesOf(device_);
  CUmemGenericAllocationHandle handle = 0;
  EK_RETURN_IF_ERROR(
      ToStatus(driver.create(&handle, static_cast<size_t>(more), &properties, 0), "cuMemCreate"));
  const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(data_ + usable_);
  absl::Status status =
      ToStatus(driver.map(at, static_cast<size_t>(more), 0, handle, 0), "cuMemMap");
  if (!status.ok()) {
    (void)driver.release(handle);
    return status;
  }
  pieces_.push_back({handle, more});
  usable_ += more;
  CUmemAccessDesc access = {};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return ToStatus(driver.set_access(at, static_cast<size_t>(more), &access, 1), "cuMemSetAccess");
}

DeviceRange::~DeviceRange() {
  if (data_ == nullptr) return;
  const Driver& driver = GetDriver();
  (void)cudaDeviceSynchronize();
  const CUdeviceptr begin = reinterpret_cast<CUdeviceptr>(data_);
  int64_t offset = 0;
  for (const Piece& piece : pieces_) {
    (void)driver.unmap(begin + static_cast<CUdeviceptr>(offset), static_cast<size_t>(piece.bytes));
    (void)driver.release(piece.handle);
    offset += piece.bytes;
  }
  (void)driver.free_address(begin, static_cast<size_t>(capacity_));
}

}  // namespace evenkeel
