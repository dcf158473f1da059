#include "runtime/device/cuda_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/device/cuda_status.h"

namespace evenkeel {
namespace {

constexpr int64_t kStagingBytes = int64_t{4} << 20;
constexpr int64_t kAlignment = 256;
// Larger uploads are not worth page-locked memory of their own.
constexpr int64_t kLargeUpload = int64_t{64} << 20;

absl::Status NotHere(std::string message) {
  return WithExitCode(absl::FailedPreconditionError(message), ExitCode::kUsage);
}

// Why no GPU is seen, and what to do.
std::string WhyNoGpu() {
  const CudaVersions versions = GetCudaVersions();
  if (versions.driver == 0) {
    return "no NVIDIA driver on this host: choose device cpu, or a host with a GPU";
  }
  if (versions.driver < versions.runtime) {
    return absl::StrCat("the NVIDIA driver of this host is for CUDA ",
                        CudaVersionText(versions.driver), ", this program was built with CUDA ",
                        CudaVersionText(versions.runtime), ": update the driver");
  }
  return "no NVIDIA GPU that this process may use (nvidia-smi -L and CUDA_VISIBLE_DEVICES tell): "
         "choose device cpu, or a host with a GPU";
}

}  // namespace

CudaVersions GetCudaVersions() {
  CudaVersions versions;
  (void)cudaRuntimeGetVersion(&versions.runtime);
  if (cudaDriverGetVersion(&versions.driver) != cudaSuccess) versions.driver = 0;
  return versions;
}

std::string CudaVersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

namespace {

// Each communicator has a stream of its own, and streams that share one of the GPU's work queues
// (8 unless told otherwise) wait for each other: for a receive, say, whose sender waits for what is
// behind it in the queue. CUDA reads the variable when it starts.
void AskForQueues() {
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
}

}  // namespace

int NumCudaDevices() {
  AskForQueues();
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  const int count = NumCudaDevices();
  if (ordinal >= count) {
    return NotHere(count == 0 ? WhyNoGpu()
                              : absl::StrCat("GPU ", ordinal, " is asked for, this process sees ",
                                             count, ", numbered from 0: start fewer ranks a host"));
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice());
  device->ordinal_ = ordinal;
  EK_RETURN_IF_ERROR(ToStatus(cudaSetDevice(ordinal), "cudaSetDevice"));
  cudaDeviceProp properties = {};
  EK_RETURN_IF_ERROR(
      ToStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  device->name_ = properties.name;
  device->num_multiprocessors_ = properties.multiProcessorCount;
  device->capability_ = 10 * properties.major + properties.minor;
  device->total_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  if (properties.major < 8) {
    return NotHere(absl::StrCat(device->name_, " has compute capability ", properties.major, ".",
                                properties.minor, "; this program needs 8.0 (Ampere) or later"));
  }
  EK_RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking),
                              "cudaStreamCreate"));
  return device;
}

CudaDevice::~CudaDevice() {
  if (stream_ != nullptr) {
    (void)cudaStreamSynchronize(stream_);
    (void)cudaStreamDestroy(stream_);
  }
  for (const Staging& block : staging_) (void)cudaFreeHost(block.data);
}

int64_t CudaDevice::free_bytes() const {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  return static_cast<int64_t>(free);
}

void CudaDevice::Note(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Note(ToStatus(error, what));
}

void CudaDevice::Note(absl::Status status) {
  if (status.ok()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (status_.ok()) status_ = std::move(status);
}

char* CudaDevice::Stage(int64_t bytes) {
  const int64_t needed = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (staging_.empty() || staged_ + needed > staging_.back().bytes) {
    Staging block;
    block.bytes = std::max(kStagingBytes, needed);
    if (!staging_.empty()) block.bytes = std::max(block.bytes, 2 * staging_.back().bytes);
    void* data = nullptr;
    const cudaError_t error = cudaMallocHost(&data, static_cast<size_t>(block.bytes));
    Note(error, "page-locked memory for uploads");
    if (error != cudaSuccess) return nullptr;
    block.data = static_cast<char*>(data);
    staging_.push_back(block);
    staged_ = 0;
  }
  char* at = staging_.back().data + staged_;
  staged_ += needed;
  return at;
}

void CudaDevice::Upload(const void* host, void* device, int64_t bytes) {
  if (bytes == 0) return;
  if (bytes > kLargeUpload) {
    Note(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
         "upload");
    Note(cudaStreamSynchronize(stream_), "upload");
    return;
  }
  char* staged = Stage(bytes);
  if (staged == nullptr) return;
  std::memcpy(staged, host, static_cast<size_t>(bytes));
  Note(cudaMemcpyAsync(device, staged, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
       "upload");
}

void CudaDevice::DownloadAsync(const void* device, void* host, int64_t bytes) {
  if (bytes == 0) return;
  Note(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
       "download");
}

absl::Status CudaDevice::Synchronize() {
  Note(cudaStreamSynchronize(stream_), "the GPU's work");
  // The largest block holds as much as this step needed, or will after a few steps.
  while (staging_.size() > 1) {
    (void)cudaFreeHost(staging_.front().data);
    staging_.erase(staging_.begin());
  }
  staged_ = 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

}  // namespace evenkeel
