// One rank's GPU: its compute stream, the way of host data to it, and what went wrong on it.
//
// Ops enqueue on the compute stream and return; nobody waits but Synchronize(), once a step. So an
// error of a launch has no caller to go to: it is noted here, and the next Synchronize() returns
// the first one, with the name of the op.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace evenkeel {

// GPUs that this process sees; 0 where there is no driver.
int NumCudaDevices();

// As CUDA writes versions: 13000 is 13.0.
struct CudaVersions {
  int runtime = 0;  // what this program was built with
  int driver = 0;   // the newest that the driver knows; 0 where there is none
};
CudaVersions GetCudaVersions();
std::string CudaVersionText(int version);

class CudaDevice {
 public:
  // Makes GPU `ordinal` current for the calling thread. Fails with kFailedPrecondition (and exit
  // code kUsage) if there is no such GPU, or if this program was not built for it.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(int ordinal);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  int ordinal() const { return ordinal_; }
  const std::string& name() const { return name_; }
  int num_multiprocessors() const { return num_multiprocessors_; }
  int capability() const { return capability_; }  // 90 is compute capability 9.0
  cudaStream_t stream() const { return stream_; }
  int64_t total_bytes() const { return total_bytes_; }
  int64_t free_bytes() const;

  // Keeps the first error. Safe from several threads.
  void Note(cudaError_t error, const char* what);
  void Note(absl::Status status);

  // Copies `bytes` from `host`, which may change as soon as this returns, to device memory, in the
  // order of the compute stream. Does not wait, unless the copy is large (whole models).
  void Upload(const void* host, void* device, int64_t bytes);

  // Waits for all that was enqueued. Returns the first error noted since the device was opened:
  // after an error there is no going on.
  absl::Status Synchronize();

  // Enqueues a copy to `host`, which must stay until Synchronize() has returned.
  void DownloadAsync(const void* device, void* host, int64_t bytes);

 private:
  // Page-locked memory that uploads pass through.
  struct Staging {
    char* data = nullptr;
    int64_t bytes = 0;
  };

  CudaDevice() = default;
  char* Stage(int64_t bytes);

  int ordinal_ = 0;
  std::string name_;
  int num_multiprocessors_ = 0;
  int capability_ = 0;
  int64_t total_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  // In use since the last Synchronize(): the front of the last block, and all blocks before it.
  std::vector<Staging> staging_;
  int64_t staged_ = 0;
  std::mutex mutex_;  // of status_
  absl::Status status_;
};

}  // namespace evenkeel
