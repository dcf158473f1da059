// AdamW on CUDA over a flat buffer of many parameters, with the formula of runtime/ops/adamw.h:
// float32 master weights, moments and gradients in, the bf16 copy that computes out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/ops/adamw_range.h"

namespace evenkeel {

struct AdamWParams {
  int64_t n = 0;
  float* weight = nullptr;      // [n]
  float* exp_avg = nullptr;     // [n]
  float* exp_avg_sq = nullptr;  // [n]
  float* gradient = nullptr;    // [n]; set to zero if `clear_gradient`
  void* copy = nullptr;         // bf16 [n]: the new weights rounded; may be null
  bool clear_gradient = false;
  // In device memory, ascending, the first at 0; at least one.
  const AdamWRange* ranges = nullptr;
  int64_t num_ranges = 0;
  // In device memory: multiplies the gradients, 1 if null. Negative or NaN: weights and moments
  // stay as they are (gradients are still cleared).
  const float* gradient_scale = nullptr;
  double lr = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  int64_t step = 1;  // counts from 1
};

cudaError_t LaunchAdamW(const AdamWParams& params, cudaStream_t stream);

}  // namespace evenkeel
