#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/row_range.h"
#include "runtime/base/row_segment.h"
#include "runtime/base/status_macros.h"
#include "runtime/device/cuda_status.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel::cuda {
namespace {

constexpr size_t kMatMulWorkspaceBytes = size_t{32} << 20;

int64_t BytesOf(const ConstTensorView& view) {
  return view.num_elements() * SizeOf(view.dtype);
}

std::string CapabilityText(int capability) {
  return absl::StrCat(capability / 10, ".", capability % 10);
}

// Keeps alive what CudaOps points to.
struct OpenedGpu {
  std::unique_ptr<CudaDevice> device;
  std::unique_ptr<CudaOps> ops;
  void* workspace = nullptr;

  ~OpenedGpu() {
    if (device == nullptr) return;
    (void)cudaStreamSynchronize(device->stream());
    ops = nullptr;
    (void)cudaFree(workspace);
  }
};

}  // namespace

int NumGpus() {
  return NumCudaDevices();
}

absl::StatusOr<std::shared_ptr<CudaOps>> OpenGpu(int ordinal) {
  auto gpu = std::make_shared<OpenedGpu>();
  EK_ASSIGN_OR_RETURN(gpu->device, CudaDevice::Open(ordinal));
  EK_RETURN_IF_ERROR(ToStatus(cudaMalloc(&gpu->workspace, kMatMulWorkspaceBytes), "cudaMalloc"));
  EK_ASSIGN_OR_RETURN(CudaMatMul matmul, CudaMatMul::Create(gpu->workspace, kMatMulWorkspaceBytes));
  gpu->ops = std::make_unique<CudaOps>(CudaOps{gpu->device.get(), std::move(matmul)});
  CudaOps* ops = gpu->ops.get();
  return std::shared_ptr<CudaOps>(std::move(gpu), ops);
}

CudaDevice& DeviceOf(CudaOps& ops) {
  return *ops.device;
}

GpuFacts FactsOf(CudaOps& ops) {
  const CudaDevice& device = *ops.device;
  return {device.ordinal(), device.name(), CapabilityText(device.capability()),
          device.total_bytes(), device.free_bytes()};
}

std::vector<GpuFacts> ListGpus() {
  std::vector<GpuFacts> list;
  int current = 0;
  const bool had_one = NumCudaDevices() > 0 && cudaGetDevice(&current) == cudaSuccess;
  for (int ordinal = 0; ordinal < NumCudaDevices(); ++ordinal) {
    cudaDeviceProp properties = {};
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) continue;
    size_t free = 0, total = 0;
    const bool tells =
        cudaSetDevice(ordinal) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess;
    list.push_back({ordinal, properties.name,
                    CapabilityText(10 * properties.major + properties.minor),
                    static_cast<int64_t>(properties.totalGlobalMem),
                    tells ? static_cast<int64_t>(free) : int64_t{-1}});
  }
  if (had_one) (void)cudaSetDevice(current);
  (void)cudaGetLastError();  // what a GPU did not tell is no error of the next kernel
  return list;
}

std::string CudaText() {
  const CudaVersions versions = GetCudaVersions();
  return absl::StrCat("CUDA ", CudaVersionText(versions.runtime), ", ",
                      versions.driver == 0 ? "no NVIDIA driver"
                                           : "driver for CUDA " + CudaVersionText(versions.driver));
}

absl::Status WaitForOps(const OpContext& context) {
  return context.cuda->device->Synchronize();
}

absl::Status CopyToHost(const OpContext& context, ConstTensorView x, TensorView host) {
  context.cuda->device->DownloadAsync(x.data, host.data, BytesOf(x));
  return context.cuda->device->Synchronize();
}

absl::Status CopyFromHost(const OpContext& context, ConstTensorView host, TensorView x) {
  context.cuda->device->Upload(host.data, x.data, BytesOf(x));
  return absl::OkStatus();
}

template <typename T>
MirroredArray<T> Mirror(const OpContext& context, MirroredArray<T> array) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0);
  if (array.device != nullptr || array.size() == 0) return array;
  const int64_t bytes = array.size() * static_cast<int64_t>(sizeof(T));
  const TensorView copy =
      context.arena.Allocate(DType::kI32, {bytes / 4}, MemoryPurpose::kActivations);
  context.cuda->device->Upload(array.host.data(), copy.data, bytes);
  array.device = static_cast<const T*>(copy.data);
  return array;
}

template Indices Mirror(const OpContext& context, Indices array);
template Positions Mirror(const OpContext& context, Positions array);
template MirroredArray<RowRange> Mirror(const OpContext& context, MirroredArray<RowRange> array);
template MirroredArray<RowSegment> Mirror(const OpContext& context,
                                          MirroredArray<RowSegment> array);

}  // namespace evenkeel::cuda
