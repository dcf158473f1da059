#include "runtime/ops/gpu.h"

#include <cstring>
#include <vector>

#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/with_cuda.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel {
namespace {

void CheckSame(const ConstTensorView& from, const ConstTensorView& to) {
  EK_CHECK(from.is_dense() && to.is_dense() && from.shape == to.shape && from.dtype == to.dtype)
      << from.shape.ToString() << " to " << to.shape.ToString();
}

void CopyOnHost(const ConstTensorView& from, const TensorView& to) {
  if (from.num_elements() == 0 || from.data == to.data) return;
  std::memcpy(to.data, from.data, static_cast<size_t>(from.num_elements() * SizeOf(from.dtype)));
}

}  // namespace

int NumGpus() {
  if constexpr (kWithCuda) return cuda::NumGpus();
  return 0;
}

absl::StatusOr<std::shared_ptr<CudaOps>> OpenGpu(int ordinal) {
  if constexpr (kWithCuda) return cuda::OpenGpu(ordinal);
  return WithExitCode(
      absl::FailedPreconditionError("this program was built without CUDA: build preset cuda "
                                    "(cmake --preset cuda), or choose device cpu"),
      ExitCode::kUsage);
}

CudaDevice& DeviceOf(CudaOps& ops) {
  if constexpr (kWithCuda) return cuda::DeviceOf(ops);
  EK_CHECK(false) << "a GPU in a build without CUDA";
  __builtin_unreachable();
}

GpuFacts FactsOf(CudaOps& ops) {
  if constexpr (kWithCuda) return cuda::FactsOf(ops);
  return {};
}

std::vector<GpuFacts> ListGpus() {
  if constexpr (kWithCuda) return cuda::ListGpus();
  return {};
}

std::string CudaText() {
  if constexpr (kWithCuda) return cuda::CudaText();
  return "built without CUDA";
}

absl::Status WaitForOps(const OpContext& context) {
  EK_PASS_ON_TO_CUDA(context, WaitForOps(context))
  return absl::OkStatus();
}

absl::Status CopyToHost(const OpContext& context, ConstTensorView x, TensorView host) {
  CheckSame(x, host);
  EK_PASS_ON_TO_CUDA(context, CopyToHost(context, x, host))
  CopyOnHost(x, host);
  return absl::OkStatus();
}

absl::Status CopyFromHost(const OpContext& context, ConstTensorView host, TensorView x) {
  CheckSame(host, x);
  EK_PASS_ON_TO_CUDA(context, CopyFromHost(context, host, x))
  CopyOnHost(host, x);
  return absl::OkStatus();
}

absl::Status ReadDoubles(const OpContext& context, ConstTensorView x, absl::Span<double> values) {
  EK_CHECK(x.num_elements() == static_cast<int64_t>(values.size())) << x.shape.ToString();
  std::vector<char> bytes(values.size() * static_cast<size_t>(SizeOf(x.dtype)));
  EK_RETURN_IF_ERROR(CopyToHost(context, x, TensorView(bytes.data(), x.dtype, x.shape)));
  for (size_t i = 0; i < values.size(); ++i) {
    switch (x.dtype) {
      case DType::kF64:
        std::memcpy(&values[i], bytes.data() + 8 * i, 8);
        break;
      case DType::kF32: {
        float value;
        std::memcpy(&value, bytes.data() + 4 * i, 4);
        values[i] = static_cast<double>(value);
        break;
      }
      case DType::kBF16: {
        uint16_t half;  // the upper half of a float32
        std::memcpy(&half, bytes.data() + 2 * i, 2);
        const uint32_t word = uint32_t{half} << 16;
        float value;
        std::memcpy(&value, &word, 4);
        values[i] = static_cast<double>(value);
        break;
      }
      default:
        EK_CHECK(false) << "not numbers: " << x.shape.ToString();
    }
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
