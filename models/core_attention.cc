#include "models/core_attention.h"

#include "attention/block_attention.h"
#include "attention/gathered_attention.h"
#include "attention/lightning_attention.h"
#include "attention/ring_attention.h"
#include "attention/sequence_parallel_lightning.h"
#include "attention/softmax_attention.h"
#include "attention/ulysses_attention.h"
#include "runtime/base/check.h"
#include "runtime/ops/split_norm.h"

namespace evenkeel {
namespace {

const TaskPlan& TasksFor(const BlockSpec& spec, const TokenLayout& layout) {
  return spec.core == CoreKind::kSoftmax ? layout.tasks : layout.block_tasks;
}

void LocalForward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                  const CoreTensors& inputs, TensorView out, TensorView lse) {
  switch (spec.core) {
    case CoreKind::kSoftmax:
    case CoreKind::kBlockSoftmax:
      return SoftmaxAttentionForward(context, TasksFor(spec, layout), spec.scale, inputs.q,
                                     inputs.k, inputs.v, out, lse);
    case CoreKind::kBlockRelu:
      return ReluBlockAttentionForward(context, layout.block_tasks, spec.scale, inputs.q, inputs.k,
                                       inputs.v, out);
    case CoreKind::kLightning:
      return LightningAttentionForward(context, layout.sequences, spec.slopes, inputs.q, inputs.k,
                                       inputs.v, ConstTensorView(), out, TensorView());
  }
}

void LocalBackward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                   const CoreTensors& inputs, ConstTensorView out, ConstTensorView lse,
                   ConstTensorView dout, const CoreTensors& gradients) {
  switch (spec.core) {
    case CoreKind::kSoftmax:
    case CoreKind::kBlockSoftmax:
      return SoftmaxAttentionBackward(context, TasksFor(spec, layout), spec.scale, inputs.q,
                                      inputs.k, inputs.v, out, lse, dout, gradients.q, gradients.k,
                                      gradients.v, KeyGradients::kWrite);
    case CoreKind::kBlockRelu:
      return ReluBlockAttentionBackward(context, layout.block_tasks, spec.scale, inputs.q, inputs.k,
                                        inputs.v, dout, gradients.q, gradients.k, gradients.v);
    case CoreKind::kLightning:
      return LightningAttentionBackward(context, layout.sequences, spec.slopes, inputs.q, inputs.k,
                                        inputs.v, ConstTensorView(), dout, ConstTensorView(),
                                        gradients.q, gradients.k, gradients.v, TensorView());
  }
}

TaskWeighting WeightingOf(const BlockSpec& spec) {
  return spec.core == CoreKind::kBlockRelu ? TaskWeighting::kRelu : TaskWeighting::kSoftmax;
}

// Over context-parallel ranks. Attention inside blocks always gathers.
void DistributedForward(const OpContext& context, const BlockSpec& spec, const ContextPlan& plan,
                        const CoreTensors& inputs, TensorView out, const CoreSaved& saved) {
  if (spec.core == CoreKind::kLightning) {
    return SequenceParallelLightningForward(context, plan, spec.slopes, inputs.q, inputs.k,
                                            inputs.v, out, saved.states);
  }
  if (spec.core != CoreKind::kSoftmax) {
    return GatheredAttentionForward(context, plan, plan.block_tasks, WeightingOf(spec), spec.scale,
                                    inputs.q, inputs.k, inputs.v, out, saved.lse);
  }
  switch (plan.strategy.softmax) {
    case SoftmaxExchange::kDisaggregated:
      EK_CHECK(false) << "disaggregated attention is that of models/pooled_pass.h";
      return;
    case SoftmaxExchange::kGather:
      return GatheredAttentionForward(context, plan, plan.tasks, TaskWeighting::kSoftmax,
                                      spec.scale, inputs.q, inputs.k, inputs.v, out, saved.lse);
    case SoftmaxExchange::kRing:
      return RingAttentionForward(context, plan, spec.scale, inputs.q, inputs.k, inputs.v, out,
                                  saved.lse);
    case SoftmaxExchange::kUlysses:
      return UlyssesAttentionForward(context, plan, spec.scale, inputs.q, inputs.k, inputs.v, out,
                                     saved.lse);
  }
}

void DistributedBackward(const OpContext& context, const BlockSpec& spec, const ContextPlan& plan,
                         const CoreTensors& inputs, ConstTensorView out, const CoreSaved& saved,
                         ConstTensorView dout, const CoreTensors& gradients) {
  if (spec.core == CoreKind::kLightning) {
    return SequenceParallelLightningBackward(context, plan, spec.slopes, inputs.q, inputs.k,
                                             inputs.v, saved.states, dout, gradients.q, gradients.k,
                                             gradients.v);
  }
  if (spec.core != CoreKind::kSoftmax) {
    return GatheredAttentionBackward(context, plan, plan.block_tasks, WeightingOf(spec), spec.scale,
                                     inputs.q, inputs.k, inputs.v, out, saved.lse, dout,
                                     gradients.q, gradients.k, gradients.v);
  }
  switch (plan.strategy.softmax) {
    case SoftmaxExchange::kDisaggregated:
      EK_CHECK(false) << "disaggregated attention is that of models/pooled_pass.h";
      return;
    case SoftmaxExchange::kGather:
      return GatheredAttentionBackward(context, plan, plan.tasks, TaskWeighting::kSoftmax,
                                       spec.scale, inputs.q, inputs.k, inputs.v, out, saved.lse,
                                       dout, gradients.q, gradients.k, gradients.v);
    case SoftmaxExchange::kRing:
      return RingAttentionBackward(context, plan, spec.scale, inputs.q, inputs.k, inputs.v, out,
                                   saved.lse, dout, gradients.q, gradients.k, gradients.v);
    case SoftmaxExchange::kUlysses:
      return UlyssesAttentionBackward(context, plan, spec.scale, inputs.q, inputs.k, inputs.v, out,
                                      saved.lse, dout, gradients.q, gradients.k, gradients.v);
  }
}

}  // namespace

CoreSaved AllocateCore(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout) {
  const int64_t tokens = layout.shards.num_tokens();
  const auto allocate = [&](DType dtype, Shape shape) {
    return context.arena.Allocate(dtype, shape, MemoryPurpose::kActivations);
  };
  CoreSaved saved;
  saved.out = allocate(context.dtype, {tokens, spec.q_width()});
  if (spec.has_lse()) saved.lse = allocate(context.wide_dtype(), {tokens, spec.num_heads});
  if (spec.core == CoreKind::kLightning && layout.context != nullptr) {
    saved.states = allocate(context.wide_dtype(), {layout.context->num_before(), spec.num_heads,
                                                   spec.core_qk_size(), spec.head_size});
  }
  if (spec.output_norm && !layout.shards.is_alone()) {
    saved.squares = allocate(context.wide_dtype(), {tokens});
  }
  return saved;
}

void CoreForward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                 const CoreTensors& inputs, const CoreSaved& saved) {
  const TensorView out = saved.out.SplitHeads(spec.num_heads);
  if (layout.context == nullptr) {
    LocalForward(context, spec, layout, inputs, out, saved.lse);
  } else {
    DistributedForward(context, spec, *layout.context, inputs, out, saved);
  }
  if (saved.squares.empty()) return;
  RowSquares(context, saved.out, saved.squares);
  layout.shards.axis()->AllReduce(saved.squares, ReduceOp::kSum, "squares of the output norm");
}

void CoreBackward(const OpContext& context, const BlockSpec& spec, const TokenLayout& layout,
                  const CoreTensors& inputs, const CoreSaved& saved, ConstTensorView dout,
                  const CoreTensors& gradients) {
  const ConstTensorView out = saved.out.SplitHeads(spec.num_heads);
  const ConstTensorView dheads = dout.SplitHeads(spec.num_heads);
  if (layout.context == nullptr) {
    LocalBackward(context, spec, layout, inputs, out, saved.lse, dheads, gradients);
  } else {
    DistributedBackward(context, spec, *layout.context, inputs, out, saved, dheads, gradients);
  }
}

}  // namespace evenkeel
