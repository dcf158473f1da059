#include "attention/kernels/cuda/attention_ops.h"

#include <algorithm>
#include <vector>

#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/kernels/cuda/relu_attention_cuda.h"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"

namespace evenkeel {

struct CudaTaskPlan {
  SoftmaxAttentionPlan host;
  SoftmaxAttentionPlanView view;         // in device memory
  const AttentionTask* tasks = nullptr;  // in device memory
};

struct CudaSequencePlan {
  LightningPlan host;
  LightningPlanView view;  // in device memory
};

namespace cuda {
namespace {

// A copy of `bytes` host bytes in the arena.
void* Uploaded(const OpContext& context, const void* host, size_t bytes) {
  void* copy = Scratch(context, bytes);
  context.cuda->device->Upload(host, copy, static_cast<int64_t>(bytes));
  return copy;
}

std::shared_ptr<const CudaTaskPlan> MakeTaskPlan(const OpContext& context,
                                                 absl::Span<const AttentionTask> tasks,
                                                 int64_t head_size, bool backward) {
  auto plan = std::make_shared<CudaTaskPlan>();
  plan->host = PlanSoftmaxAttention(tasks.data(), static_cast<int64_t>(tasks.size()),
                                    TilingOf(static_cast<int>(head_size)), backward);
  plan->view =
      ViewOf(plan->host, Uploaded(context, plan->host.bytes.data(), plan->host.bytes.size()));
  plan->tasks = static_cast<const AttentionTask*>(
      Uploaded(context, tasks.data(), tasks.size() * sizeof(AttentionTask)));
  return plan;
}

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

std::shared_ptr<const CudaTaskPlan> PlanOf(const OpContext& context, const TaskPlan& plan,
                                           const ConstTensorView& q, const ConstTensorView& v,
                                           bool backward) {
  if (plan.cuda != nullptr) return plan.cuda;
  return MakeTaskPlan(context, plan.tasks, std::max(q.dim(2), v.dim(2)), backward);
}

void CheckHeads(const ConstTensorView& x) {
  EK_CHECK(x.rank() == 3 && x.dtype == DType::kBF16 && (x.dim(1) == 1 || x.stride(1) == x.dim(2)))
      << x.shape.ToString();
}

// What the parameter structs of softmax and ReLU attention have in common.
template <typename Params>
void SetOperands(Params& params, double scale, const ConstTensorView& q, const ConstTensorView& k,
                 const ConstTensorView& v) {
  CheckHeads(q);
  CheckHeads(k);
  CheckHeads(v);
  params.num_heads = static_cast<int>(q.dim(1));
  params.head_dim = static_cast<int>(q.dim(2));
  params.value_dim = static_cast<int>(v.dim(2));
  params.scale = static_cast<float>(scale);
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  params.q_stride = q.stride(0);
  params.k_stride = k.stride(0);
  params.v_stride = v.stride(0);
}

template <typename Params>
void SetGradients(Params& params, const ConstTensorView& dout, const TensorView& dq,
                  const TensorView& dk, const TensorView& dv) {
  params.dout = dout.data;
  params.dout_stride = dout.stride(0);
  params.dq = dq.data;
  params.dq_stride = dq.stride(0);
  params.dk = dk.data;
  params.dk_stride = dk.stride(0);
  params.dv = dv.data;
  params.dv_stride = dv.stride(0);
}

SoftmaxForwardParams ForwardParams(const CudaTaskPlan& plan, double scale, const ConstTensorView& q,
                                   const ConstTensorView& k, const ConstTensorView& v) {
  SoftmaxForwardParams params;
  SetOperands(params, scale, q, k, v);
  params.plan = plan.view;
  params.num_kv_heads = static_cast<int>(k.dim(1));
  params.q_rows = q.dim(0);
  params.kv_rows = k.dim(0);
  return params;
}

}  // namespace

TaskPlan PlanTasks(const OpContext& context, absl::Span<const AttentionTask> tasks,
                   int64_t head_size, bool backward) {
  TaskPlan plan(tasks);
  plan.cuda = MakeTaskPlan(context, tasks, head_size, backward);
  return plan;
}

SequencePlan PlanSequences(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                           int64_t num_heads, int64_t value_size) {
  SequencePlan plan(cu_seqlens);
  plan.cuda = MakeSequencePlan(context, cu_seqlens, num_heads, value_size);
  return plan;
}

void SoftmaxAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, q, v, /*backward=*/false);
  SoftmaxForwardParams params = ForwardParams(*device_plan, scale, q, k, v);
  CheckHeads(out);
  EK_CHECK(lse.is_dense()) << lse.shape.ToString();
  params.out = out.data;
  params.out_stride = out.stride(0);
  params.lse = lse.as<float>();
  Note(context, LaunchSoftmaxForward(params, StreamOf(context)), "SoftmaxAttentionForward");
}

void SoftmaxAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                              TensorView dq, TensorView dk, TensorView dv, KeyGradients mode) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, q, v, /*backward=*/true);
  SoftmaxBackwardParams params;
  params.forward = ForwardParams(*device_plan, scale, q, k, v);
  CheckHeads(out);
  CheckHeads(dout);
  CheckHeads(dq);
  EK_CHECK(lse.is_dense()) << lse.shape.ToString();
  // The launcher's struct serves the forward pass too; here these two are only read.
  params.forward.out = const_cast<void*>(out.data);
  params.forward.out_stride = out.stride(0);
  params.forward.lse = const_cast<float*>(lse.as<float>());
  SetGradients(params, dout, dq, dk, dv);
  params.accumulate = mode == KeyGradients::kAdd;
  params.workspace = Scratch(
      context, SoftmaxBackwardWorkspaceBytes(device_plan->host, params.forward.num_heads,
                                             params.forward.head_dim, params.forward.value_dim));
  Note(context, LaunchSoftmaxBackward(params, StreamOf(context)), "SoftmaxAttentionBackward");
}

namespace {

ReluAttentionForwardParams ReluParams(const CudaTaskPlan& plan, size_t num_tasks, double scale,
                                      const ConstTensorView& q, const ConstTensorView& k,
                                      const ConstTensorView& v) {
  ReluAttentionForwardParams params;
  SetOperands(params, scale, q, k, v);
  params.tasks = plan.tasks;
  params.num_tasks = static_cast<int64_t>(num_tasks);
  return params;
}

}  // namespace

void ReluBlockAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               TensorView out) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, q, v, /*backward=*/false);
  ReluAttentionForwardParams params = ReluParams(*device_plan, plan.tasks.size(), scale, q, k, v);
  CheckHeads(out);
  params.out = out.data;
  params.out_stride = out.stride(0);
  Note(context, LaunchReluAttentionForward(params, StreamOf(context)), "ReluBlockAttentionForward");
}

void ReluBlockAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                                ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                ConstTensorView dout, TensorView dq, TensorView dk, TensorView dv) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, q, v, /*backward=*/false);
  ReluAttentionBackwardParams params;
  params.forward = ReluParams(*device_plan, plan.tasks.size(), scale, q, k, v);
  CheckHeads(dout);
  CheckHeads(dq);
  CheckHeads(dk);
  CheckHeads(dv);
  SetGradients(params, dout, dq, dk, dv);
  Note(context, LaunchReluAttentionBackward(params, StreamOf(context)),
       "ReluBlockAttentionBackward");
}

namespace {

LightningForwardParams LightningParams(const OpContext& context, const CudaSequencePlan& plan,
                                       absl::Span<const double> slopes, const ConstTensorView& q,
                                       const ConstTensorView& k, const ConstTensorView& v,
                                       const ConstTensorView& initial_state) {
  CheckHeads(q);
  CheckHeads(k);
  CheckHeads(v);
  EK_CHECK(initial_state.empty() || initial_state.is_dense()) << initial_state.shape.ToString();
  const std::vector<float> rounded(slopes.begin(), slopes.end());
  LightningForwardParams params;
  params.plan = plan.view;
  params.num_heads = static_cast<int>(q.dim(1));
  params.head_dim = static_cast<int>(q.dim(2));
  params.value_dim = static_cast<int>(v.dim(2));
  params.slopes =
      static_cast<const float*>(Uploaded(context, rounded.data(), rounded.size() * sizeof(float)));
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  params.initial_state = initial_state.as<float>();
  params.q_stride = q.stride(0);
  params.k_stride = k.stride(0);
  params.v_stride = v.stride(0);
  return params;
}

std::shared_ptr<const CudaSequencePlan> PlanOf(const OpContext& context, const SequencePlan& plan,
                                               const ConstTensorView& v) {
  if (plan.cuda != nullptr) return plan.cuda;
  return MakeSequencePlan(context, plan.cu_seqlens, v.dim(1), v.dim(2));
}

}  // namespace

void LightningAttentionForward(const OpContext& context, const SequencePlan& plan,
                               absl::Span<const double> slopes, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                               TensorView out, TensorView final_state) {
  const ArenaScope scope(context.arena);
  const auto device_plan = PlanOf(context, plan, v);
  LightningForwardParams params =
      LightningParams(context, *device_plan, slopes, q, k, v, initial_state);
  CheckHeads(out);
  EK_CHECK(final_state.empty() || final_state.is_dense()) << final_state.shape.ToString();
  params.out = out.data;
  params.out_stride = out.stride(0);
  params.final_state = final_state.as<float>();
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
  CheckHeads(dout);
  CheckHeads(dq);
  CheckHeads(dk);
  CheckHeads(dv);
  params.dout = dout.data;
  params.dfinal_state = dfinal_state.as<float>();
  params.dq = dq.data;
  params.dk = dk.data;
  params.dv = dv.data;
  params.dinitial_state = dinitial_state.as<float>();
  params.dout_stride = dout.stride(0);
  params.dq_stride = dq.stride(0);
  params.dk_stride = dk.stride(0);
  params.dv_stride = dv.stride(0);
  params.workspace = Scratch(
      context, LightningBackwardWorkspaceBytes(device_plan->host, params.forward.num_heads,
                                               params.forward.head_dim, params.forward.value_dim));
  Note(context, LaunchLightningBackward(params, StreamOf(context)), "LightningAttentionBackward");
}

}  // namespace cuda
}  // namespace evenkeel
