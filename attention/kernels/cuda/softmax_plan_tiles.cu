#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "attention/kernels/cuda/softmax_plan_tiles.h"

namespace evenkeel {
namespace {

// A thread is a few dependent reads of descriptors that all blocks share: small blocks spread them
// over the multiprocessors.
constexpr int kThreads = 128;

// Grid: a thread for each tile of any kind.
__global__ void __launch_bounds__(kThreads) MakePlanTilesKernel(SoftmaxPlanPieces plan) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index < NumPlanTiles(plan)) MakePlanTile(plan, index);
}

}  // namespace

cudaError_t LaunchPlanTiles(const SoftmaxAttentionPlan& plan, void* memory, cudaStream_t stream) {
  const SoftmaxPlanPieces pieces = PiecesOf(plan, memory);
  const int64_t tiles = NumPlanTiles(pieces);
  if (tiles == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((tiles + kThreads - 1) / kThreads);
  MakePlanTilesKernel<<<blocks, kThreads, 0, stream>>>(pieces);
  return cudaGetLastError();
}

}  // namespace evenkeel
