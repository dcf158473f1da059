#include <numeric>
#include <vector>

#include "attention/kernels/cuda/attention_operands.h"
#include "attention/kernels/cuda/attention_ops.h"
#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/kernels/cuda/lightning_decode_cuda.h"

namespace evenkeel {

struct CudaSequencePlan {
  LightningPlan host;
  LightningPlanView view;  // in device memory
};

namespace cuda {
namespace {

std::shared_ptr<const CudaSequencePlan> MakeSequencePlan(const OpContext& context,
                                                         absl::Span<const int64_t> cu_seqlens,
                                                         int64_t num_heads, int64_t value_size) {
  auto plan = std::make_shared<CudaSequencePlan>();
  const int rows = LightningSegmentRows(cu_seqlens.back(), static_cast<int>(num_heads),
                                        static_cast<int>(value_size),
                                        context.cuda->device->num_multiprocessors());
  plan->host =
      PlanLightningAttention(cu_seqlens.data(), static_cast<int64_t>(cu_seqlens.size()) - 1, rows);
  plan->view =
      ViewOf(plan->host, Uploaded(context, plan->host.bytes.data(), plan->host.bytes.size()));
  return plan;
}

std::shared_ptr<const CudaSequencePlan> PlanOf(const OpContext& context, const SequencePlan& plan,
                                               const ConstTensorView& v) {
  if (plan.cuda != nullptr) return plan.cuda;
  return MakeSequencePlan(context, plan.cu_seqlens, v.dim(1), v.dim(2));
}

// float32 slopes in device memory.
const float* UploadedSlopes(const OpContext& context, absl::Span<const double> slopes) {
  const std::vector<float> rounded(slopes.begin(), slopes.end());
  return static_cast<const float*>(
      Uploaded(context, rounded.data(), rounded.size() * sizeof(float)));
}

// What the parameter structs of forward calls have in common. `q` may be empty: the parameters are
// then of a call that does not read it.
template <typename Params>
void SetOperands(Params& params, const OpContext& context, absl::Span<const double> slopes,
                 const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                 const ConstTensorView& initial_state) {
  if (!q.empty()) CheckHeads(q);
  CheckHeads(k);
  CheckHeads(v);
  EK_CHECK(initial_state.empty() || initial_state.is_dense()) << initial_state.shape.ToString();
  params.num_heads = static_cast<int>(k.dim(1));
  params.head_dim = static_cast<int>(k.dim(2));
  params.value_dim = static_cast<int>(v.dim(2));
  params.slopes = UploadedSlopes(context, slopes);
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  params.initial_state = initial_state.as<float>();
  params.q_stride = q.empty() ? 0 : q.stride(0);
  params.k_stride = k.stride(0);
  params.v_stride = v.stride(0);
}

template <typename Params>
void SetResults(Params& params, const TensorView& out, const TensorView& final_state) {
  CheckHeads(out);
  EK_CHECK(final_state.empty() || final_state.is_dense()) << final_state.shape.ToString();
  params.out = out.data;
  params.out_stride = out.stride(0);
  params.final_state = final_state.as<float>();
}

LightningForwardParams LightningParams(const OpContext& context, const CudaSequencePlan& plan,
                                       absl::Span<const double> slopes, const ConstTensorView& q,
                                       const ConstTensorView& k, const ConstTensorView& v,
                                       const ConstTensorView& initial_state) {
  LightningForwardParams params;
  params.plan = plan.view;
  SetOperands(params, context, slopes, q, k, v, initial_state);
  return params;
}

// Whether every document is one token long, as in a step of decoding.
bool IsOneTokenEach(absl::Span<const int64_t> cu_seqlens) {
  for (size_t b = 0; b < cu_seqlens.size(); ++b) {
    if (cu_seqlens[b] != static_cast<int64_t>(b)) return false;
  }
  return true;
}

void SetQueryGradient(LightningBackwardParams& params, const ConstTensorView& dout,
                      const TensorView& dq) {
  CheckHeads(dout);
  CheckHeads(dq);
  params.dout = dout.data;
  params.dout_stride = dout.stride(0);
  params.dq = dq.data;
  params.dq_stride = dq.stride(0);
}

void SetKeyGradients(LightningBackwardParams& params, const ConstTensorView& dout,
                     const ConstTensorView& dfinal_state, const TensorView& dk,
                     const TensorView& dv, const TensorView& dinitial_state) {
  CheckHeads(dout);
  CheckHeads(dk);
  CheckHeads(dv);
  EK_CHECK((dfinal_state.empty() || dfinal_state.is_dense()) &&
           (dinitial_state.empty() || dinitial_state.is_dense()))
      << dfinal_state.shape.ToString() << dinitial_state.shape.ToString();
  params.dout = dout.data;
  params.dout_stride = dout.stride(0);
  params.dfinal_state = dfinal_state.as<float>();
  params.dk = dk.data;
  params.dk_stride = dk.stride(0);
  params.dv = dv.data;
  params.dv_stride = dv.stride(0);
  params.dinitial_state = dinitial_state.as<float>();
}

size_t StateBytes(const LightningPlan& plan, const LightningForwardParams& params) {
  return LightningForwardWorkspaceBytes(plan, params.num_heads, params.head_dim, params.value_dim);
}

void SumStates(const OpContext& context, const SequencePlan& plan, absl::Span<const double> slopes,
               bool reversed, ConstTensorView k, ConstTensorView v, TensorView last_state,
               const char* op) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, v);
  CheckHeads(k);
  CheckHeads(v);
  EK_CHECK(last_state.is_dense()) << last_state.shape.ToString();
  LightningStateParams params;
  params.plan = device_plan->view;
  params.num_heads = static_cast<int>(k.dim(1));
  params.head_dim = static_cast<int>(k.dim(2));
  params.value_dim = static_cast<int>(v.dim(2));
  params.slopes = UploadedSlopes(context, slopes);
  params.k = k.data;
  params.v = v.data;
  params.k_stride = k.stride(0);
  params.v_stride = v.stride(0);
  params.reversed = reversed;
  params.last_state = last_state.as<float>();
  params.workspace =
      Scratch(context, LightningForwardWorkspaceBytes(device_plan->host, params.num_heads,
                                                      params.head_dim, params.value_dim));
  Note(context, LaunchLightningStates(params, StreamOf(context)), op);
}

}  // namespace

SequencePlan PlanSequences(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                           int64_t num_heads, int64_t value_size) {
  SequencePlan plan(cu_seqlens);
  plan.cuda = MakeSequencePlan(context, cu_seqlens, num_heads, value_size);
  return plan;
}

void LightningAttentionForward(const OpContext& context, const SequencePlan& plan,
                               absl::Span<const double> slopes, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                               TensorView out, TensorView final_state) {
  const ArenaScope scope(context.arena);
  if (IsOneTokenEach(plan.cu_seqlens)) {
    LightningDecodeParams params;
    params.num_sequences = v.dim(0);
    SetOperands(params, context, slopes, q, k, v, initial_state);
    SetResults(params, out, final_state);
    Note(context, LaunchLightningDecode(params, StreamOf(context)), "LightningAttentionForward");
    return;
  }
  const auto device_plan = PlanOf(context, plan, v);
  LightningForwardParams params =
      LightningParams(context, *device_plan, slopes, q, k, v, initial_state);
  SetResults(params, out, final_state);
  params.workspace =
      Scratch(context, LightningForwardWorkspaceBytes(device_plan->host, params.num_heads,
                                                      params.head_dim, params.value_dim));
  Note(context, LaunchLightningForward(params, StreamOf(context)), "LightningAttentionForward");
}

void LightningAttentionBackward(const OpContext& context, const SequencePlan& plan,
                                absl::Span<const double> slopes, ConstTensorView q,
                                ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                                ConstTensorView dout, ConstTensorView dfinal_state, TensorView dq,
                                TensorView dk, TensorView dv, TensorView dinitial_state) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, v);
  LightningBackwardParams params;
  params.forward = LightningParams(context, *device_plan, slopes, q, k, v, initial_state);
  SetQueryGradient(params, dout, dq);
  SetKeyGradients(params, dout, dfinal_state, dk, dv, dinitial_state);
  params.workspace = Scratch(
      context, LightningBackwardWorkspaceBytes(device_plan->host, params.forward.num_heads,
                                               params.forward.head_dim, params.forward.value_dim));
  Note(context, LaunchLightningBackward(params, StreamOf(context)), "LightningAttentionBackward");
}

void LightningAttentionBackwardQuery(const OpContext& context, const SequencePlan& plan,
                                     absl::Span<const double> slopes, ConstTensorView k,
                                     ConstTensorView v, ConstTensorView initial_state,
                                     ConstTensorView dout, TensorView dq) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, v);
  LightningBackwardParams params;
  params.forward = LightningParams(context, *device_plan, slopes, {}, k, v, initial_state);
  SetQueryGradient(params, dout, dq);
  params.workspace = Scratch(context, StateBytes(device_plan->host, params.forward));
  Note(context, LaunchLightningBackwardQuery(params, StreamOf(context)),
       "LightningAttentionBackwardQuery");
}

void LightningAttentionBackwardKeyValue(const OpContext& context, const SequencePlan& plan,
                                        absl::Span<const double> slopes, ConstTensorView q,
                                        ConstTensorView k, ConstTensorView v, ConstTensorView dout,
                                        ConstTensorView dfinal_state, TensorView dk, TensorView dv,
                                        TensorView dinitial_state) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, v);
  LightningBackwardParams params;
  params.forward = LightningParams(context, *device_plan, slopes, q, k, v, {});
  SetKeyGradients(params, dout, dfinal_state, dk, dv, dinitial_state);
  params.workspace = Scratch(context, StateBytes(device_plan->host, params.forward));
  Note(context, LaunchLightningBackwardKeyValue(params, StreamOf(context)),
       "LightningAttentionBackwardKeyValue");
}

void LightningStateForward(const OpContext& context, const SequencePlan& plan,
                           absl::Span<const double> slopes, ConstTensorView k, ConstTensorView v,
                           TensorView final_state) {
  SumStates(context, plan, slopes, /*reversed=*/false, k, v, final_state, "LightningStateForward");
}

void LightningStateBackward(const OpContext& context, const SequencePlan& plan,
                            absl::Span<const double> slopes, ConstTensorView q,
                            ConstTensorView dout, TensorView dinitial_state) {
  SumStates(context, plan, slopes, /*reversed=*/true, q, dout, dinitial_state,
            "LightningStateBackward");
}

void CombineStates(const OpContext& context, absl::Span<const double> slopes,
                   absl::Span<const StateTerm> terms, ConstTensorView sources, TensorView targets) {
  const ArenaScope scope(context.arena);
  CombineStatesParams params;
  params.num_targets = targets.dim(0);
  params.num_heads = static_cast<int>(targets.dim(1));
  params.size = targets.dim(2) * targets.dim(3);
  std::vector<StateSource> list;
  std::vector<int32_t> begins(static_cast<size_t>(params.num_targets) + 1, 0);
  for (const StateTerm& term : terms) {
    list.push_back({static_cast<int32_t>(term.source), static_cast<float>(term.distance)});
    ++begins[static_cast<size_t>(term.target) + 1];
  }
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  params.terms = static_cast<const StateSource*>(
      Uploaded(context, list.data(), list.size() * sizeof(StateSource)));
  params.begins = static_cast<const int32_t*>(
      Uploaded(context, begins.data(), begins.size() * sizeof(int32_t)));
  params.slopes = UploadedSlopes(context, slopes);
  params.sources = sources.as<float>();
  params.targets = targets.as<float>();
  Note(context, LaunchCombineStates(params, StreamOf(context)), "CombineStates");
}

}  // namespace cuda
}  // namespace evenkeel
