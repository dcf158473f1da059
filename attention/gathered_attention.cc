#include "attention/gathered_attention.h"

#include "attention/block_attention.h"
#include "attention/key_value_rows.h"
#include "attention/softmax_attention.h"

namespace evenkeel {
namespace {

TensorView Workspace(const OpContext& context, DType dtype, Shape shape) {
  return context.arena.Allocate(dtype, shape, MemoryPurpose::kWorkspace);
}

// [T, W] keys and values of all ranks, in the order of the packed batch.
TensorView GatherKeysAndValues(const OpContext& context, const ContextPlan& plan,
                               const KeyValueShape& shape, ConstTensorView k, ConstTensorView v) {
  const int64_t tokens = plan.layout.num_tokens();
  const TensorView packed = Workspace(context, context.dtype, {tokens, shape.width()});
  const ArenaScope scope(context.arena);
  const TensorView mine = Workspace(context, context.dtype, {plan.num_mine(), shape.width()});
  const TensorView all = Workspace(context, context.dtype, {tokens, shape.width()});
  PackKeysAndValues(context, shape, k, v, mine);
  plan.axis->AllGather(mine, all, plan.layout.rows(), "keys and values");
  CopyRowRanges(context, plan.to_packed, all, packed);
  return packed;
}

}  // namespace

void GatheredAttentionForward(const OpContext& context, const ContextPlan& plan,
                              const TaskPlan& tasks, TaskWeighting weighting, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              TensorView out, TensorView lse) {
  const ArenaScope scope(context.arena);
  const KeyValueShape shape(k, v);
  const ConstTensorView packed = GatherKeysAndValues(context, plan, shape, k, v);
  const ConstTensorView keys = shape.Keys(packed), values = shape.Values(packed);
  if (plan.num_mine() == 0) return;
  if (weighting == TaskWeighting::kSoftmax) {
    SoftmaxAttentionForward(context, tasks, scale, q, keys, values, out, lse);
  } else {
    ReluBlockAttentionForward(context, tasks, scale, q, keys, values, out);
  }
}

void GatheredAttentionBackward(const OpContext& context, const ContextPlan& plan,
                               const TaskPlan& tasks, TaskWeighting weighting, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                               TensorView dq, TensorView dk, TensorView dv) {
  const ArenaScope scope(context.arena);
  const KeyValueShape shape(k, v);
  const int64_t tokens = plan.layout.num_tokens();
  const ConstTensorView packed = GatherKeysAndValues(context, plan, shape, k, v);
  const ConstTensorView keys = shape.Keys(packed), values = shape.Values(packed);
  // Sums over tasks and ranks are made in the wide dtype; the ReLU kernels write their own.
  const DType dtype = weighting == TaskWeighting::kSoftmax ? context.wide_dtype() : context.dtype;
  const TensorView gradient = Workspace(context, dtype, {tokens, shape.width()});
  SetZero(context, gradient);
  const TensorView dkeys = shape.Keys(gradient), dvalues = shape.Values(gradient);
  if (plan.num_mine() > 0) {
    if (weighting == TaskWeighting::kSoftmax) {
      SoftmaxAttentionBackward(context, tasks, scale, q, keys, values, out, lse, dout, dq, dkeys,
                               dvalues, KeyGradients::kAdd);
    } else {
      ReluBlockAttentionBackward(context, tasks, scale, q, keys, values, dout, dq, dkeys, dvalues);
    }
  }
  const TensorView all = Workspace(context, dtype, {tokens, shape.width()});
  const TensorView mine = Workspace(context, dtype, {plan.num_mine(), shape.width()});
  CopyRowRanges(context, plan.to_ranks, gradient, all);
  Work work =
      plan.axis->ReduceScatterAsync(all, mine, plan.layout.rows(), "gradients of keys and values");
  plan.axis->Wait(work);
  UnpackKeysAndValues(context, shape, mine, dk, dv);
}

}  // namespace evenkeel
