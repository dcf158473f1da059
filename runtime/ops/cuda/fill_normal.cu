#include <algorithm>

#include "runtime/base/philox.h"
#include "runtime/ops/cuda/fill_normal_cuda.h"

namespace evenkeel {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) FillNormalKernel(const FillNormalParams p) {
  const Philox random(p.seed, p.stream);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count;
       i += step) {
    p.y[i] = static_cast<float>(p.scale * random.Normal(static_cast<uint64_t>(p.first + i)));
  }
}

}  // namespace

cudaError_t LaunchFillNormal(const FillNormalParams& p, cudaStream_t stream) {
  if (p.count < 0) return cudaErrorInvalidValue;
  if (p.count == 0) return cudaSuccess;
  constexpr int64_t kMaxBlocks = 8192;
  const int64_t blocks = std::min((p.count + kThreads - 1) / kThreads, kMaxBlocks);
  FillNormalKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace evenkeel
