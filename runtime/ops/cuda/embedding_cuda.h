// Token embedding on CUDA, with the meaning of runtime/ops/embedding.h: a gather from a bf16 table,
// and its float32 gradient without atomics, by a plan that groups the tokens. sm_80 and later; fast
// where C is a multiple of 8 and rows are aligned to 16 bytes, right for any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "runtime/ops/cuda/embedding_plan.h"

namespace evenkeel {

struct EmbeddingForwardParams {
  int64_t tokens = 0;            // T
  int64_t columns = 0;           // C
  const int32_t* ids = nullptr;  // [T], each in [0, V), or negative for a row of zeros
  const void* table = nullptr;   // bf16 [V, C], dense
  float scale = 1.0f;
  void* y = nullptr;     // bf16 [T, C] = scale table[ids]
  int64_t y_stride = 0;  // elements between rows
};

cudaError_t LaunchEmbeddingForward(const EmbeddingForwardParams& params, cudaStream_t stream);

struct EmbeddingBackwardParams {
  EmbeddingPlanView plan;    // in device memory
  int64_t columns = 0;       // C
  const void* dy = nullptr;  // bf16 [T, C]
  int64_t dy_stride = 0;
  float scale = 1.0f;
  float* dtable = nullptr;    // [V, C], dense: += scale dy
  void* workspace = nullptr;  // EmbeddingBackwardWorkspaceBytes, aligned to 16
};

// A row of float32 for each run of ids that occur often: at most a row for every 32 tokens.
size_t EmbeddingBackwardWorkspaceBytes(const EmbeddingPlanView& plan, int64_t columns);

cudaError_t LaunchEmbeddingBackward(const EmbeddingBackwardParams& params, cudaStream_t stream);

}  // namespace evenkeel
