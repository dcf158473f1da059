// Scratch memory of the softmax backward pass, shared by its kernels.
#pragma once

#include "attention/kernels/cuda/softmax_attention_cuda.h"

namespace evenkeel {

// Scratch memory: float32 dQ in fragment order, lse (base 2) and delta padded to whole query tiles,
// and the counters: one ticket, then the number of contributions to each query tile and head. On
// Hopper two a tile: at head size 256 of each half, below that the second is unused.
struct SoftmaxBackwardWorkspace {
  float* dq;
  float* lse;
  float* delta;
  uint32_t* counters;
  int64_t num_counters;
};

// Lays the pieces out from `base`, which may be null to learn their size, for tiles of `queries`
// rows.
SoftmaxBackwardWorkspace LayOutSoftmaxBackward(void* base, int64_t query_tiles, int queries,
                                               int num_heads, int padded_dim, size_t* bytes);

// Enqueues what comes before the main kernel: clears the counters, fills lse and delta.
cudaError_t LaunchSoftmaxBackwardStatistics(const SoftmaxBackwardParams& params,
                                            const SoftmaxBackwardWorkspace& workspace,
                                            cudaStream_t stream);

}  // namespace evenkeel
