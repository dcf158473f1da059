// The group of all ranks for tensors on their GPUs, over NCCL. Free of CUDA's headers; in a build
// without CUDA there is none.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/trace_event.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

class CudaDevice;

struct GpuCommOptions {
  // How long an operation that has begun on this rank may wait for its peers.
  double timeout_s = 300;
  // Several ranks use one GPU: for tests, with traffic over sockets.
  bool shares_gpu = false;
};

class GpuComm {
 public:
  virtual ~GpuComm() = default;

  // Takes and fills tensors in GPU memory. A Work's Wait() makes the compute stream wait, not the
  // host: results are there for what is enqueued after it. Errors and time-outs are noted on the
  // CudaDevice, whose Synchronize() returns them.
  virtual Communicator& world() = 0;

  // Seconds that the compute stream waited for communication since the last call; to be asked after
  // CudaDevice::Synchronize().
  virtual double TakeExposedSeconds() = 0;

  // For a timeline: begins to keep this rank's calls as they run on the GPU, returns those that
  // ended since the last time (after CudaDevice::Synchronize()), stops.
  virtual absl::Status StartTrace() = 0;
  virtual std::vector<TraceEvent> TakeTrace() = 0;
  virtual void StopTrace() = 0;
};

// "2.28.9": the NCCL that this process runs with.
std::string NcclVersion();

// Collective over `host_comm`, which brings the ranks together and must outlive the result, as must
// the device.
absl::StatusOr<std::unique_ptr<GpuComm>> OpenGpuComm(Communicator& host_comm, CudaDevice& device,
                                                     const GpuCommOptions& options);

}  // namespace evenkeel
