// Sums of decayed states. One thread takes four elements of one target and head.
#include <cuda_runtime.h>

#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/kernels/cuda/mma.cuh"

namespace evenkeel {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    CombineStatesKernel(const __grid_constant__ CombineStatesParams p, int blocks_per_state) {
  const int64_t state = blockIdx.x / blocks_per_state;  // target * H + head
  const int64_t at =
      (int64_t{blockIdx.x % blocks_per_state} * kThreads + static_cast<int>(threadIdx.x)) * 4;
  if (at >= p.size) return;
  const int64_t target = state / p.num_heads;
  const int64_t head = state % p.num_heads;
  const float log_decay = -p.slopes[head] * kLog2E;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const int end = p.begins[target + 1];
  for (int i = p.begins[target]; i < end; ++i) {
    const StateSource term = p.terms[i];
    // No distance is no decay, also of an infinite slope.
    const float factor = term.distance == 0.0f ? 1.0f : Exp2(log_decay * term.distance);
    const float4 x = *reinterpret_cast<const float4*>(
        p.sources + (int64_t{term.source} * p.num_heads + head) * p.size + at);
    sum.x += factor * x.x;
    sum.y += factor * x.y;
    sum.z += factor * x.z;
    sum.w += factor * x.w;
  }
  *reinterpret_cast<float4*>(p.targets + state * p.size + at) = sum;
}

}  // namespace

cudaError_t LaunchCombineStates(const CombineStatesParams& params, cudaStream_t stream) {
  if (params.size < 0 || params.size % 4 != 0 || params.num_targets < 0 || params.num_heads < 0) {
    return cudaErrorInvalidValue;
  }
  const int64_t blocks_per_state = (params.size / 4 + kThreads - 1) / kThreads;
  const int64_t blocks = params.num_targets * params.num_heads * blocks_per_state;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  CombineStatesKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      params, static_cast<int>(blocks_per_state));
  return cudaGetLastError();
}

}  // namespace evenkeel
