#include "attention/kernels/cuda/attention_ops.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "attention/kernels/cuda/attention_operands.h"
#include "attention/kernels/cuda/merge_state_cuda.h"
#include "attention/kernels/cuda/relu_attention_cuda.h"
#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"

namespace evenkeel {

struct CudaTaskPlan {
  SoftmaxAttentionPlan host;
  SoftmaxAttentionPlanView view;  // in device memory
  bool has_relu = false;
  const AttentionTask* relu_tasks = nullptr;  // in device memory, and the groups
  const ReluTaskGroup* relu_groups = nullptr;
  int64_t num_relu_groups = 0;
};

namespace cuda {
namespace {

void AddSoftmax(const OpContext& context, absl::Span<const AttentionTask> tasks,
                const TaskHeads& heads, bool backward, CudaTaskPlan& plan) {
  plan.host = PlanSoftmaxAttention(tasks.data(), static_cast<int64_t>(tasks.size()),
                                   TilingOf(static_cast<int>(heads.size)),
                                   static_cast<int>(heads.group), backward);
  void* const memory = Scratch(context, PlanMemoryBytes(plan.host));
  context.cuda->device->Upload(plan.host.bytes.data(), memory,
                               static_cast<int64_t>(plan.host.bytes.size()));
  Note(context, LaunchPlanTiles(plan.host, memory, StreamOf(context)), "PlanTasks");
  plan.view = ViewOf(plan.host, memory);
}

void AddRelu(const OpContext& context, absl::Span<const AttentionTask> tasks, CudaTaskPlan& plan) {
  const ReluAttentionPlan relu =
      PlanReluAttention(tasks.data(), static_cast<int64_t>(tasks.size()));
  plan.has_relu = true;
  plan.relu_tasks = static_cast<const AttentionTask*>(
      Uploaded(context, relu.tasks.data(), relu.tasks.size() * sizeof(AttentionTask)));
  plan.relu_groups = static_cast<const ReluTaskGroup*>(
      Uploaded(context, relu.groups.data(), relu.groups.size() * sizeof(ReluTaskGroup)));
  plan.num_relu_groups = static_cast<int64_t>(relu.groups.size());
}

std::shared_ptr<const CudaTaskPlan> SoftmaxPlanOf(const OpContext& context, const TaskPlan& plan,
                                                  const ConstTensorView& q,
                                                  const ConstTensorView& k,
                                                  const ConstTensorView& v, bool backward) {
  if (plan.cuda != nullptr) return plan.cuda;
  const int64_t group = k.dim(1) > 0 ? q.dim(1) / k.dim(1) : 1;
  auto made = std::make_shared<CudaTaskPlan>();
  AddSoftmax(context, plan.tasks, {std::max(q.dim(2), v.dim(2)), group}, backward, *made);
  return made;
}

std::shared_ptr<const CudaTaskPlan> ReluPlanOf(const OpContext& context, const TaskPlan& plan) {
  if (plan.cuda != nullptr) {
    EK_CHECK(plan.cuda->has_relu) << "the tasks were planned for softmax attention alone";
    return plan.cuda;
  }
  auto made = std::make_shared<CudaTaskPlan>();
  AddRelu(context, plan.tasks, *made);
  return made;
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

// An empty `out` has rows of size 0.
MergeStateParams StateParams(const TensorView& out, const TensorView& lse) {
  MergeStateParams params;
  params.rows = lse.dim(0);
  params.heads = lse.dim(1);
  if (!out.empty()) {
    EK_CHECK(out.stride(2) == 1) << out.shape.ToString();
    params.size = out.dim(2);
    params.out = out.as<float>();
    params.out_strides = {out.stride(0), out.stride(1)};
  }
  params.lse = lse.as<float>();
  params.lse_strides = {lse.stride(0), lse.stride(1)};
  return params;
}

}  // namespace

TaskPlan PlanTasks(const OpContext& context, absl::Span<const AttentionTask> tasks,
                   const TaskHeads& heads, bool backward, bool relu) {
  auto made = std::make_shared<CudaTaskPlan>();
  AddSoftmax(context, tasks, heads, backward, *made);
  if (relu) AddRelu(context, tasks, *made);
  TaskPlan plan(tasks);
  plan.cuda = std::move(made);
  return plan;
}

void SoftmaxAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse) {
  const ArenaScope scope(context.arena);
  const auto device_plan = SoftmaxPlanOf(context, plan, q, k, v, /*backward=*/false);
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
  const auto device_plan = SoftmaxPlanOf(context, plan, q, k, v, /*backward=*/true);
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
  params.mode = mode == KeyGradients::kAdd     ? KeyGradientMode::kAddFloat32
                : mode == KeyGradients::kWrite ? KeyGradientMode::kWriteBf16
                                               : KeyGradientMode::kWriteFloat32;
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
  params.tasks = plan.relu_tasks;
  params.num_tasks = static_cast<int64_t>(num_tasks);
  return params;
}

}  // namespace

void ReluBlockAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               TensorView out) {
  const ArenaScope scope(context.arena);
  const auto device_plan = ReluPlanOf(context, plan);
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
  const auto device_plan = ReluPlanOf(context, plan);
  ReluAttentionBackwardParams params;
  params.forward = ReluParams(*device_plan, plan.tasks.size(), scale, q, k, v);
  params.groups = device_plan->relu_groups;
  params.num_groups = device_plan->num_relu_groups;
  CheckHeads(dout);
  CheckHeads(dq);
  CheckHeads(dk);
  CheckHeads(dv);
  SetGradients(params, dout, dq, dk, dv);
  Note(context, LaunchReluAttentionBackward(params, StreamOf(context)),
       "ReluBlockAttentionBackward");
}

void MergeState(const OpContext& context, ConstTensorView part_out, ConstTensorView part_lse,
                TensorView out, TensorView lse) {
  MergeStateParams params = StateParams(out, lse);
  params.part_is_bf16 = part_out.dtype == DType::kBF16;
  EK_CHECK((params.part_is_bf16 || part_out.dtype == DType::kF32) && part_out.stride(2) == 1)
      << part_out.shape.ToString();
  params.part_out = part_out.data;
  params.part_out_strides = {part_out.stride(0), part_out.stride(1)};
  params.part_lse = part_lse.as<float>();
  params.part_lse_strides = {part_lse.stride(0), part_lse.stride(1)};
  Note(context, LaunchMergeState(params, StreamOf(context)), "MergeState");
}

void SetIdentityState(const OpContext& context, TensorView out, TensorView lse) {
  Note(context, LaunchSetIdentityState(StateParams(out, lse), StreamOf(context)),
       "SetIdentityState");
}

}  // namespace cuda
}  // namespace evenkeel
