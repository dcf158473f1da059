// Opening a GPU for ops, and carrying tensors between it and the host. Free of CUDA's headers; in a
// build without CUDA OpenGpu fails and the rest works on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// GPUs that this process sees; 0 without a driver or in a build without CUDA.
int NumGpus();

// Makes GPU `ordinal` current for the calling thread and prepares it for ops. Fails with
// kFailedPrecondition where there is no such GPU. Close arenas and tensors on it first.
absl::StatusOr<std::shared_ptr<CudaOps>> OpenGpu(int ordinal);

CudaDevice& DeviceOf(CudaOps& ops);

struct GpuFacts {
  int ordinal = 0;
  std::string name;        // "NVIDIA H100 80GB HBM3"
  std::string capability;  // "9.0"
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;  // -1 if the GPU does not tell, as where another process has it alone
};
GpuFacts FactsOf(CudaOps& ops);

// All GPUs that this process sees, also those too old for it. Asking takes a moment and some memory
// of each GPU.
std::vector<GpuFacts> ListGpus();

// "CUDA 13.0, driver for CUDA 13.0", or that there is none.
std::string CudaText();

// Waits for everything that was enqueued, and returns the first thing that went wrong with it. On
// the CPU there is nothing to wait for.
absl::Status WaitForOps(const OpContext& context);

// Copies between the context's device and the host, dense tensors of one shape and dtype. To the
// host it waits, from the host it does not have to. On the CPU both are plain copies.
absl::Status CopyToHost(const OpContext& context, ConstTensorView x, TensorView host);
absl::Status CopyFromHost(const OpContext& context, ConstTensorView host, TensorView x);

// Fills `values` with the numbers of a dense x (float32, float64 or bf16), waiting for them.
absl::Status ReadDoubles(const OpContext& context, ConstTensorView x, absl::Span<double> values);

}  // namespace evenkeel
