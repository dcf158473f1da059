// The three kernels that lightning attention is made of (lightning_segments.cu; two of them again
// for Hopper, see lightning_sm90.cuh), and what they are told. Private to the launchers of this
// folder.
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
  // The states around the documents, [B, H, K, V] or null; they may be the same.
  const float* initial;
  float* last;
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

// What becomes of the states of segments.
enum class StateScan {
  // Each is replaced by the state before it; the one after a document goes to `last`.
  kReplace,
  // The same where the last segment of a document has no state of its own: `last` is written for
  // documents without tokens only.
  kReplaceOpen,
  // They stay as they are; only `last` is written.
  kLast,
};

// All passes of a launch have states of one size. early (compute capability 9.0): begins under the
// tail of the kernel before it in the stream, which is that of the states.
cudaError_t LaunchScanStates(const LightningProblem& problem, int num_passes, StateScan scan,
                             bool early, cudaStream_t stream);

// The outputs, all segments at once.
cudaError_t LaunchSegmentOutputs(const LightningProblem& problem, int num_passes, int column_tiles,
                                 cudaStream_t stream);

// The same for compute capability 9.0 and K and V of this size.
constexpr int kLightningSm90Dim = 128;

// joins: only the states that other segments start from.
cudaError_t LaunchSegmentStatesSm90(const LightningProblem& problem, int num_passes, bool joins,
                                    cudaStream_t stream);

// The outputs, and the states after the documents, `last`. A document whose `initial` is null
// starts from zero and not from its first segment's block of `states`. early: begins under the tail
// of the kernel before it in the stream, which is the scan.
cudaError_t LaunchSegmentOutputsSm90(const LightningProblem& problem, int num_passes, bool early,
                                     cudaStream_t stream);

}  // namespace evenkeel
