#include "runtime/comm/gpu_comm.h"

#include <nccl.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/cuda/nccl_runtime.h"
#include "runtime/device/cuda_device.h"

namespace evenkeel {
namespace {

class NcclGpuComm : public GpuComm {
 public:
  explicit NcclGpuComm(NcclRuntime runtime) : runtime_(std::move(runtime)) {}

  Communicator& world() override { return runtime_.world(); }
  double TakeExposedSeconds() override { return runtime_.TakeExposedSeconds(); }
  absl::Status StartTrace() override { return runtime_.StartTrace(); }
  std::vector<TraceEvent> TakeTrace() override { return runtime_.TakeTrace(); }
  void StopTrace() override { runtime_.StopTrace(); }

 private:
  NcclRuntime runtime_;
};

}  // namespace

std::string NcclVersion() {
  int version = 0;  // 22809 is 2.28.9
  if (ncclGetVersion(&version) != ncclSuccess) return "?";
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::StatusOr<std::unique_ptr<GpuComm>> OpenGpuComm(Communicator& host_comm, CudaDevice& device,
                                                     const GpuCommOptions& options) {
  NcclOptions nccl;
  nccl.device = device.ordinal();
  nccl.compute_stream = device.stream();
  nccl.timeout_s = options.timeout_s;
  nccl.shares_device = options.shares_gpu;
  // The host hears of it when it next waits for the GPU, which the abort that follows sets free. If
  // it is not listening, the log has it.
  nccl.on_failure = [&device](absl::Status status) {
    LogError(std::string(status.message()));
    device.Note(std::move(status));
  };
  EK_ASSIGN_OR_RETURN(NcclRuntime runtime, NcclRuntime::Create(host_comm, nccl));
  return std::make_unique<NcclGpuComm>(std::move(runtime));
}

}  // namespace evenkeel
