// Cross-entropy over slices of the vocabulary on CUDA, with the meaning of
// runtime/ops/cross_entropy_slices.h; sm_80 and later. Fast for rows aligned to 16 bytes, right for
// any. Statistics {max, sum of exp(z - max), target's logit} are float32 [T, 3], dense.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

struct CrossEntropySliceStatisticsParams {
  int64_t tokens = 0;                // T
  int64_t vocab = 0;                 // Vr of this slice; 0: {-inf, 0, 0}
  int64_t vocab_begin = 0;           // id of its first logit
  const void* logits = nullptr;      // bf16 [T, Vr]
  int64_t stride = 0;                // elements between rows
  const int32_t* targets = nullptr;  // [T], ids of the whole vocabulary, or negative for none
  float* statistics = nullptr;       // [T, 3]
};

// Enqueues one read of the logits. A NaN or +inf among them gives a sum of NaN.
cudaError_t LaunchCrossEntropySliceStatistics(const CrossEntropySliceStatisticsParams& params,
                                              cudaStream_t stream);

struct CrossEntropySliceGradientParams {
  int64_t tokens = 0;                // T
  int64_t slices = 0;                // P
  int64_t vocab = 0;                 // Vr of this slice; 0: losses alone
  int64_t vocab_begin = 0;           // id of its first logit
  const float* all = nullptr;        // [P, T, 3] in order of the vocabulary
  const int32_t* targets = nullptr;  // [T], or negative for none: loss and gradient 0
  float scale = 1.0f;
  void* logits = nullptr;   // bf16 [T, Vr]; replaced by their gradient
  int64_t stride = 0;       // elements between rows
  float* losses = nullptr;  // [T]
};

// Enqueues one read and one write of the logits.
cudaError_t LaunchCrossEntropySliceGradient(const CrossEntropySliceGradientParams& params,
                                            cudaStream_t stream);

}  // namespace evenkeel
