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

// A call's kernels: those for Hopper or not, and whether the last one launched was the scan.
struct Kernels {
  bool sm90 = false;
  bool scan_last = false;
};

cudaError_t ChooseKernels(const LightningForwardParams& p, Kernels* kernels) {
  if (p.portable || p.head_dim != kLightningSm90Dim || p.value_dim != kLightningSm90Dim) {
    return cudaSuccess;
  }
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  kernels->sm90 = major == 9;
  return error;
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
  BackwardPasses passes = {};
  Recurrence& state = passes.state;
  state.k = k;
  state.v = v;
  state.states = states;
  state.k_stride = p.k_stride;
  state.v_stride = p.v_stride;
  state.key_dim = p.head_dim;
  state.value_dim = p.value_dim;
  state.state_key_stride = p.value_dim;
  state.state_value_stride = 1;
  state.initial = p.initial_state;
  Recurrence& gradient = passes.gradient;
  gradient = state;
  gradient.q = k;
  gradient.k = q;
  gradient.v = dout;
  gradient.out = static_cast<Bf16*>(b.dv);
  gradient.states = gradients;
  gradient.q_stride = p.k_stride;
  gradient.k_stride = p.q_stride;
  gradient.v_stride = b.dout_stride;
  gradient.out_stride = b.dv_stride;
  gradient.reversed = true;
  gradient.initial = b.dfinal_state;
  gradient.last = b.dinitial_state;
  Recurrence& dq = passes.dq;
  dq.q = dout;
  dq.k = v;
  dq.v = k;
  dq.out = static_cast<Bf16*>(b.dq);
  dq.states = states;
  dq.q_stride = b.dout_stride;
  dq.k_stride = p.v_stride;
  dq.v_stride = p.k_stride;
  dq.out_stride = b.dq_stride;
  dq.key_dim = p.value_dim;
  dq.value_dim = p.head_dim;
  dq.state_key_stride = 1;
  dq.state_value_stride = p.value_dim;
  dq.initial = p.initial_state;
  Recurrence& dk = passes.dk;
  dk = dq;
  dk.q = v;
  dk.k = dout;
  dk.v = q;
  dk.out = static_cast<Bf16*>(b.dk);
  dk.states = gradients;
  dk.q_stride = p.v_stride;
  dk.k_stride = b.dout_stride;
  dk.v_stride = p.q_stride;
  dk.out_stride = b.dk_stride;
  dk.reversed = true;
  dk.initial = b.dfinal_state;
  return passes;
}

int ColumnTiles(const LightningProblem& problem, int num_passes) {
  int tiles = 0;
  for (int i = 0; i < num_passes; ++i) {
    tiles = std::max(tiles, LightningColumnTiles(problem.passes[i].value_dim));
  }
  return tiles;
}

// Puts the state before every segment into its block of the workspace. The states after the
// documents are written here or with the outputs.
cudaError_t ComputeStates(const LightningProblem& problem, int num_passes, Kernels& kernels,
                          cudaStream_t stream) {
  const LightningPlanView& plan = problem.plan;
  cudaError_t error = cudaSuccess;
  if (kernels.sm90) {
    error = LaunchSegmentStatesSm90(problem, num_passes, /*joins=*/true, stream);
  } else if (plan.num_segments > 0) {
    error = LaunchSegmentStates(problem, num_passes, ColumnTiles(problem, num_passes), stream);
  }
  if (error != cudaSuccess) return error;
  if (!kernels.sm90) {
    return LaunchScanStates(problem, num_passes, StateScan::kReplace, /*early=*/false, stream);
  }
  bool needed = plan.num_joins > 0;
  for (int i = 0; i < num_passes; ++i) {
    const Recurrence& pass = problem.passes[i];
    needed = needed || pass.initial != nullptr || pass.last != nullptr;
  }
  if (!needed) return cudaSuccess;
  kernels.scan_last = true;
  return LaunchScanStates(problem, num_passes, StateScan::kReplaceOpen,
                          /*early=*/plan.num_joins > 0, stream);
}

cudaError_t ComputeOutputs(const LightningProblem& problem, int num_passes, const Kernels& kernels,
                           cudaStream_t stream) {
  if (problem.plan.num_segments == 0) return cudaSuccess;
  if (!kernels.sm90) {
    return LaunchSegmentOutputs(problem, num_passes, ColumnTiles(problem, num_passes), stream);
  }
  return LaunchSegmentOutputsSm90(problem, num_passes, /*early=*/kernels.scan_last, stream);
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
  Kernels kernels;
  cudaError_t error = ChooseKernels(p, &kernels);
  if (error != cudaSuccess) return error;
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
  pass.initial = p.initial_state;
  pass.last = p.final_state;
  error = ComputeStates(problem, 1, kernels, stream);
  if (error != cudaSuccess) return error;
  return ComputeOutputs(problem, 1, kernels, stream);
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
  sizes.portable = p.portable;
  if (!Valid(sizes)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  Kernels kernels;
  cudaError_t error = ChooseKernels(sizes, &kernels);
  if (error != cudaSuccess) return error;
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
  pass.last = p.last_state;
  if (p.plan.num_segments > 0) {
    error = kernels.sm90
                ? LaunchSegmentStatesSm90(problem, 1, /*joins=*/false, stream)
                : LaunchSegmentStates(problem, 1, LightningColumnTiles(p.value_dim), stream);
    if (error != cudaSuccess) return error;
  }
  return LaunchScanStates(problem, 1, StateScan::kLast, /*early=*/false, stream);
}

cudaError_t LaunchLightningBackward(const LightningBackwardParams& b, cudaStream_t stream) {
  const LightningForwardParams& p = b.forward;
  if (!Valid(b)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  Kernels kernels;
  cudaError_t error = ChooseKernels(p, &kernels);
  if (error != cudaSuccess) return error;
  auto* states = static_cast<float*>(b.workspace);
  const size_t state_bytes = StateBytes(p.plan.num_segments, p.num_heads, p.head_dim, p.value_dim);
  BackwardPasses passes = MakePasses(b, states, states + state_bytes / sizeof(float));
  LightningProblem problem = MakeProblem(p);
  problem.passes[0] = passes.state;
  problem.passes[1] = passes.gradient;
  error = ComputeStates(problem, 2, kernels, stream);
  if (error != cudaSuccess) return error;
  // Where the sizes of keys and values share no kernel, dv is computed apart.
  const bool together = LightningPaddedDim(p.head_dim) == LightningPaddedDim(p.value_dim);
  problem.passes[0] = passes.dk;
  problem.passes[1] = together ? passes.gradient : passes.dq;
  problem.passes[2] = passes.dq;
  error = ComputeOutputs(problem, together ? 3 : 2, kernels, stream);
  if (error != cudaSuccess || together) return error;
  problem.passes[0] = passes.gradient;
  return ComputeOutputs(problem, 1, kernels, stream);
}

cudaError_t LaunchLightningBackwardQuery(const LightningBackwardParams& b, cudaStream_t stream) {
  const LightningForwardParams& p = b.forward;
  if (!Valid(b)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0 || p.plan.num_segments == 0) return cudaSuccess;
  Kernels kernels;
  cudaError_t error = ChooseKernels(p, &kernels);
  if (error != cudaSuccess) return error;
  const BackwardPasses passes = MakePasses(b, static_cast<float*>(b.workspace), nullptr);
  LightningProblem problem = MakeProblem(p);
  problem.passes[0] = passes.state;
  error = ComputeStates(problem, 1, kernels, stream);
  if (error != cudaSuccess) return error;
  problem.passes[0] = passes.dq;
  return ComputeOutputs(problem, 1, kernels, stream);
}

cudaError_t LaunchLightningBackwardKeyValue(const LightningBackwardParams& b, cudaStream_t stream) {
  const LightningForwardParams& p = b.forward;
  if (!Valid(b)) return cudaErrorInvalidValue;
  if (p.plan.num_documents == 0) return cudaSuccess;
  Kernels kernels;
  cudaError_t error = ChooseKernels(p, &kernels);
  if (error != cudaSuccess) return error;
  const BackwardPasses passes = MakePasses(b, nullptr, static_cast<float*>(b.workspace));
  LightningProblem problem = MakeProblem(p);
  problem.passes[0] = passes.gradient;
  error = ComputeStates(problem, 1, kernels, stream);
  if (error != cudaSuccess) return error;
  const bool together = LightningPaddedDim(p.head_dim) == LightningPaddedDim(p.value_dim);
  problem.passes[1] = passes.dk;
  error = ComputeOutputs(problem, together ? 2 : 1, kernels, stream);
  if (error != cudaSuccess || together) return error;
  problem.passes[0] = passes.dk;
  return ComputeOutputs(problem, 1, kernels, stream);
}

}  // namespace evenkeel
