// Position encodings of q and k on CUDA, with the meaning of runtime/ops/position.h: bf16 tensors,
// float32 arithmetic and tables; sm_80 and later. Heads are dense: a row is H D elements, or the
// columns of a wider projection. Fast where D is a multiple of 16 (RoPE) or 8 (LRPE) and rows are
// aligned to 16 bytes; right for any D (RoPE: even).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "runtime/ops/activation_kind.h"

namespace evenkeel {

// cos, sin = attention_factor * cos/sin(position[t] * inverse_frequency[j]): in float64, rounded
// once, so position one million is as exact as position one.
struct RopeTableParams {
  int64_t tokens = 0;                           // T
  int64_t head_dim = 0;                         // D, even
  const int64_t* positions = nullptr;           // [T]
  const double* inverse_frequencies = nullptr;  // [D/2], of RopeInverseFrequencies
  double attention_factor = 1.0;                // of RopeAttentionFactor
  float* cos = nullptr;                         // [T, D/2]
  float* sin = nullptr;                         // [T, D/2]
};

cudaError_t LaunchRopeTable(const RopeTableParams& params, cudaStream_t stream);

// Rotates x in place; q and k of a packed projection are one x of H + G heads.
struct RopeParams {
  int64_t tokens = 0;          // T
  int64_t heads = 0;           // H
  int64_t head_dim = 0;        // D, even
  const float* cos = nullptr;  // [T, D/2]
  const float* sin = nullptr;  // [T, D/2]
  void* x = nullptr;           // bf16 [T, H, D]
  int64_t stride = 0;          // elements between tokens
  bool inverse = false;        // the backward pass
};

cudaError_t LaunchRope(const RopeParams& params, cudaStream_t stream);

// LRPE of an activated input: a = f(x), y[t,h] = concat(a cos(theta_h p_t), a sin(theta_h p_t)).
struct LrpeParams {
  Activation activation = Activation::kSilu;  // f
  int64_t tokens = 0;                         // T
  int64_t heads = 0;                          // H
  int64_t head_dim = 0;                       // D
  const int64_t* positions = nullptr;         // [T]
  const float* theta = nullptr;               // [H, D]
  const void* x = nullptr;                    // bf16 [T, H, D]
  int64_t x_stride = 0;
  // Forward.
  void* y = nullptr;  // bf16 [T, H, 2 D]
  int64_t y_stride = 0;
  // Backward.
  const void* dy = nullptr;   // bf16 [T, H, 2 D]
  void* dx = nullptr;         // bf16 [T, H, D]; may be x
  float* dtheta = nullptr;    // [H, D], added to in an order that depends on the shape alone
  void* workspace = nullptr;  // LrpeBackwardWorkspaceBytes, aligned to 16
  int64_t dy_stride = 0;
  int64_t dx_stride = 0;
};

cudaError_t LaunchLrpeForward(const LrpeParams& params, cudaStream_t stream);

// A row of float32 for every 8 tokens or more: at most 5 MiB or so.
size_t LrpeBackwardWorkspaceBytes(int64_t tokens, int64_t heads, int64_t head_dim);

cudaError_t LaunchLrpeBackward(const LrpeParams& params, cudaStream_t stream);

}  // namespace evenkeel
