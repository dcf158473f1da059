// Softmax attention for Hopper GPUs (compute capability 9.0): bulk tensor copies, warpgroup
// products and specialised warps. LaunchSoftmaxForward and LaunchSoftmaxBackward choose it.
#pragma once

#include "attention/kernels/cuda/softmax_attention_cuda.h"

namespace evenkeel {

// Expects parameters that LaunchSoftmaxForward has checked.
cudaError_t LaunchSoftmaxForwardSm90(const SoftmaxForwardParams& params, cudaStream_t stream);

// Expects parameters that LaunchSoftmaxBackward has checked.
cudaError_t LaunchSoftmaxBackwardSm90(const SoftmaxBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
