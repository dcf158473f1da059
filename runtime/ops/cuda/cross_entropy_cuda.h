// Cross-entropy over the vocabulary on CUDA, with the gradient made in the same kernel, in place.
// Meaning of runtime/ops/cross_entropy.h; sm_80 and later. The caller feeds it chunks of tokens.
//   loss_t = logsumexp(z_t) - z_t[target_t];   dz_t = scale (softmax(z_t) - onehot(target_t))
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

struct CrossEntropyParams {
  int64_t tokens = 0;         // T of this chunk
  int64_t vocab = 0;          // V
  bool float_logits = false;  // float32 logits rather than bf16
  void* logits = nullptr;     // [T, V]; replaced by their gradient unless `losses_only`
  int64_t stride = 0;         // elements between rows
  const int32_t* targets =
      nullptr;  // [T], each in [0, V), or negative for none: loss and gradient 0
  float scale = 1.0f;
  float* losses = nullptr;  // [T]
  bool losses_only = false;
};

// Enqueues the loss and its gradient. Logits with NaN or +inf (or anything above 2e38) among them,
// or nothing but -inf, give NaN in the loss and the whole gradient row. The fastest vocabularies
// fit the shared memory of a multiprocessor (113 Ki bf16 logits on Hopper); of larger ones the rest
// is read twice.
cudaError_t LaunchCrossEntropy(const CrossEntropyParams& params, cudaStream_t stream);

}  // namespace evenkeel
