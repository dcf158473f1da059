#include <algorithm>

#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/kernels/cuda/lightning_segments.h"

namespace evenkeel {
namespace {

using Bf16 = __nv_bfloat16;

bool Valid(const LightningForwardParams& p) {
  return std::min(p.head_dim, p.value_dim) >= 8 && std::max(p.head_dim, p.value_dim) <= 256 &&
         p.head_dim % 8 == 0 && p.value_dim % 8 == 0 && p.num_heads > 0 && p.q_stride % 8 == 0 &&
         p.k_stride % 8 == 0 && p.v_stride % 8 == 0;
}

bool Valid(const LightningBackwardParams& b) {
  return Valid(b.forward) && b.dout_stride % 8 == 0 && b.dq_stride % 8 == 0 &&
         b.dk_stride % 8 == 0 && b.dv_stride % 8 == 0;
}

size_t StateBytes(int64_t segments, int num_heads, int head_dim, int value_dim) {
  return static_cast<size_t>(segments) * num_heads * head_dim * value_dim * sizeof(float);
}

LightningProblem MakeProblem(const LightningForwardParams& p) {
  LightningProblem problem = {};
  problem.plan = p.plan;
  problem.slopes = p.slopes;
  problem.num_heads = p.num_heads;
  return problem;
}

// The recurrences of the backward pass. Both kinds of state are stored [D, E]; dq and dk read them
// transposed.
struct BackwardPasses {
  Recurrence state;     // makes the states that dq reads
  Recurrence gradient;  // makes the gradients of states that dk and dv read, and dv
  Recurrence dq;
  Recurrence dk;
};

BackwardPasses MakePasses(const LightningBackwardParams& b, float* states, float* gradients) {
  const LightningForwardParams& p = b.forward;
  const auto* q = static_cast<const Bf16*>(p.q);
  const auto* k = static_cast<const Bf16*>(p.k);
  const auto* v = static_cast<const Bf16*>(p.v);
  const auto* dout = static_cast<const Bf16*>(b.dout);
  const int d = p.head_dim, e = p.value_dim;
  BackwardPasses passes = {};
  passes.state = {q,          k, v, nullptr, states, p.q_stride, p.k_stride,
                  p.v_stride, 0, d, e,       e,      1,          false};
  passes.gradient = {k,           q,          dout,       static_cast<Bf16*>(b.dv),
                     gradients,   p.k_stride, p.q_stride, b.dout_stride,
                     b.dv_stride, d,          e,          e,
                     1,           true};
  passes.dq = {dout,        v,
               k,           static_cast<Bf16*>(b.dq),
               states,      b.dout_stride,
               p.v_stride,  p.k_stride,
               b.dq_stride, e,
               d,           1,
               e,           false};
  passes.dk = {v,
               dout,
               q,
               static_cast<Bf16*>(b.dk),
               gradients,
               p.v_stride,
               b.dout_stride,
               p.q_stride,
               b.dk_stride,
               e,
               d,
               1,
               e,
               true};
  return passes;
}

}  // namespace

size_t LightningForwardWorkspaceBytes(const LightningPlan& plan, int num_heads, int head_dim,
                                      int value_dim) {
  return StateBytes(plan.num_segments, num_heads, head_dim, value_dim);
}

size_t LightningBackwardWorkspaceBytes(const LightningPlan& plan, int num_heads, int head_dim,
                                       int value_dim) {
  return 2 * StateBytes(plan.num_segments, num_heads, head_dim, value_dim);
}

cudaError_t LaunchLightningForward(const LightningForwardParams& p, cudaStream_t stream) {
  if (!Valid(p) || p.out_stride % 8 != 0) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  LightningProblem problem = MakeProblem(p);
  Recurrence& pass = problem.passes[0];
  pass.q = static_cast<const Bf16*>(p.q);
  pass.k = static_cast<const Bf16*>(p.k);
  pass.v = static_cast<const Bf16*>(p.v);
  pass.out = static_cast<Bf16*>(p.out);
  pass.states = static_cast<float*>(p.workspace);
  pass.q_stride = p.q_stride;
  pass.k_stride = p.k_stride;
  pass.v_stride = p.v_stride;
  pass.out_stride = p.out_stride;
  pass.key_dim = p.head_dim;
  pass.value_dim = p.value_dim;
  pass.state_key_stride = p.value_dim;
  pass.state_value_stride = 1;
  const bool any = p.plan.num_segments > 0;
  const int column_tiles = LightningColumnTiles(p.value_dim);
  cudaError_t error = any ? LaunchSegmentStates(problem, 1, column_tiles, stream) : cudaSuccess;
  if (error != cudaSuccess) return error;
  error = LaunchScanStates(problem, pass, p.initial_state, p.final_state, stream);
  if (error != cudaSuccess || !any) return error;
  return LaunchSegmentOutputs(problem, 1, column_tiles, stream);
}

cudaError_t LaunchLightningStates(const LightningStateParams& p, cudaStream_t stream) {
  LightningForwardParams sizes;
  sizes.plan = p.plan;
  sizes.slopes = p.slopes;
  sizes.num_heads = p.num_heads;
  sizes.head_dim = p.head_dim;
  sizes.value_dim = p.value_dim;
  sizes.k_stride = p.k_stride;
  sizes.v_stride = p.v_stride;
  if (!Valid(sizes)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  LightningProblem problem = MakeProblem(sizes);
  Recurrence& pass = problem.passes[0];
  pass.k = static_cast<const Bf16*>(p.k);
  pass.v = static_cast<const Bf16*>(p.v);
  pass.states = static_cast<float*>(p.workspace);
  pass.k_stride = p.k_stride;
  pass.v_stride = p.v_stride;
  pass.key_dim = p.head_dim;
  pass.value_dim = p.value_dim;
  pass.reversed = p.reversed;
  if (p.plan.num_segments > 0) {
    const cudaError_t error =
        LaunchSegmentStates(problem, 1, LightningColumnTiles(p.value_dim), stream);
    if (error != cudaSuccess) return error;
  }
  return LaunchLastStates(problem, pass, nullptr, p.last_state, stream);
}

cudaError_t LaunchLightningBackward(const LightningBackwardParams& b, cudaStream_t stream) {
  const LightningForwardParams& p = b.forward;
  if (!Valid(b)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  auto* states = static_cast<float*>(b.workspace);
  const size_t state_bytes = StateBytes(p.plan.num_segments, p.num_heads, p.head_dim, p.value_dim);
  const BackwardPasses passes = MakePasses(b, states, states + state_bytes / sizeof(float));
  const int d = p.head_dim, e = p.value_dim;
  LightningProblem problem = MakeProblem(p);
  problem.passes[0] = passes.state;
  problem.passes[1] = passes.gradient;
  const bool any = p.plan.num_segments > 0;
  cudaError_t error =
      any ? LaunchSegmentStates(problem, 2, LightningColumnTiles(e), stream) : cudaSuccess;
  if (error != cudaSuccess) return error;
  if (any) error = LaunchScanStates(problem, passes.state, p.initial_state, nullptr, stream);
  if (error != cudaSuccess) return error;
  error = LaunchScanStates(problem, passes.gradient, b.dfinal_state, b.dinitial_state, stream);
  if (error != cudaSuccess || !any) return error;
  problem.passes[0] = passes.dq;
  problem.passes[1] = passes.dk;
  problem.passes[2] = passes.gradient;
  if (LightningPaddedDim(d) == LightningPaddedDim(e)) {
    return LaunchSegmentOutputs(problem, 3, LightningColumnTiles(std::max(d, e)), stream);
  }
  error = LaunchSegmentOutputs(problem, 2, LightningColumnTiles(d), stream);
  if (error != cudaSuccess) return error;
  problem.passes[0] = passes.gradient;
  return LaunchSegmentOutputs(problem, 1, LightningColumnTiles(e), stream);
}

cudaError_t LaunchLightningBackwardQuery(const LightningBackwardParams& b, cudaStream_t stream) {
  const LightningForwardParams& p = b.forward;
  if (!Valid(b)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0 || p.plan.num_segments == 0) return cudaSuccess;
  const BackwardPasses passes = MakePasses(b, static_cast<float*>(b.workspace), nullptr);
  LightningProblem problem = MakeProblem(p);
  problem.passes[0] = passes.state;
  cudaError_t error = LaunchSegmentStates(problem, 1, LightningColumnTiles(p.value_dim), stream);
  if (error != cudaSuccess) return error;
  error = LaunchScanStates(problem, passes.state, p.initial_state, nullptr, stream);
  if (error != cudaSuccess) return error;
  problem.passes[0] = passes.dq;
  return LaunchSegmentOutputs(problem, 1, LightningColumnTiles(p.head_dim), stream);
}

cudaError_t LaunchLightningBackwardKeyValue(const LightningBackwardParams& b, cudaStream_t stream) {
  const LightningForwardParams& p = b.forward;
  if (!Valid(b)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  const BackwardPasses passes = MakePasses(b, nullptr, static_cast<float*>(b.workspace));
  const int d = p.head_dim, e = p.value_dim;
  LightningProblem problem = MakeProblem(p);
  problem.passes[0] = passes.gradient;
  const bool any = p.plan.num_segments > 0;
  cudaError_t error =
      any ? LaunchSegmentStates(problem, 1, LightningColumnTiles(e), stream) : cudaSuccess;
  if (error != cudaSuccess) return error;
  error = LaunchScanStates(problem, passes.gradient, b.dfinal_state, b.dinitial_state, stream);
  if (error != cudaSuccess || !any) return error;
  if (LightningPaddedDim(d) == LightningPaddedDim(e)) {
    problem.passes[1] = passes.dk;
    return LaunchSegmentOutputs(problem, 2, LightningColumnTiles(std::max(d, e)), stream);
  }
  error = LaunchSegmentOutputs(problem, 1, LightningColumnTiles(e), stream);
  if (error != cudaSuccess) return error;
  problem.passes[0] = passes.dk;
  return LaunchSegmentOutputs(problem, 1, LightningColumnTiles(d), stream);
}

}  // namespace evenkeel
