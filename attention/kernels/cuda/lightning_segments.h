// The three kernels that lightning attention is made of (lightning_segments.cu), and what they are
// told. Private to the launchers of this folder.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/kernels/cuda/lightning_attention_plan.h"

namespace evenkeel {

// One recurrence. K is the size of q and k rows, V of v and out rows.
struct Recurrence {
  const __nv_bfloat16* q;
  const __nv_bfloat16* k;
  const __nv_bfloat16* v;
  __nv_bfloat16* out;
  float* states;  // of the segments: [segments, H] blocks of K * V floats
  int64_t q_stride, k_stride, v_stride, out_stride;
  int key_dim, value_dim;
  // Strides of K and V in a block of `states`; the segment output kernel may read them transposed.
  int state_key_stride, state_value_stride;
  bool reversed;
};

struct LightningProblem {
  LightningPlanView plan;
  const float* slopes;
  int num_heads;
  Recurrence passes[3];  // blockIdx.z picks one
};

// Tiles of 64 columns.
int LightningColumnTiles(int value_dim);

// Key sizes that share a kernel: 64, 128 or 256.
int LightningPaddedDim(int dim);

// The state every segment would have if it started from zero. All passes of a launch have key sizes
// that round up to the same kernel; column_tiles is that of the widest values.
cudaError_t LaunchSegmentStates(const LightningProblem& problem, int num_passes, int column_tiles,
                                cudaStream_t stream);

// From those the state before every segment, in their place, and the one after the last segment of
// each document in `last`. initial, last [B, H, K, V] or null; they may be the same.
cudaError_t LaunchScanStates(const LightningProblem& problem, const Recurrence& pass,
                             const float* initial, float* last, cudaStream_t stream);

// The same for `last` alone: the states of the segments stay as they are.
cudaError_t LaunchLastStates(const LightningProblem& problem, const Recurrence& pass,
                             const float* initial, float* last, cudaStream_t stream);

// The outputs, all segments at once.
cudaError_t LaunchSegmentOutputs(const LightningProblem& problem, int num_passes, int column_tiles,
                                 cudaStream_t stream);

}  // namespace evenkeel
