// Attention on a GPU, by the names and with the meaning of the functions in attention/: see
// runtime/ops/cuda/cuda_ops.h.
#pragma once

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "attention/lightning_state.h"
#include "attention/softmax_attention.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel::cuda {

TaskPlan PlanTasks(const OpContext& context, absl::Span<const AttentionTask> tasks,
                   const TaskHeads& heads, bool backward, bool relu);
SequencePlan PlanSequences(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                           int64_t num_heads, int64_t value_size);

void SoftmaxAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse);
void SoftmaxAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                              TensorView dq, TensorView dk, TensorView dv, KeyGradients mode);
void ReluBlockAttentionForward(const OpContext& context, const TaskPlan& plan, double scale,
                               ConstTensorView q, ConstTensorView k, ConstTensorView v,
                               TensorView out);
void ReluBlockAttentionBackward(const OpContext& context, const TaskPlan& plan, double scale,
                                ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                ConstTensorView dout, TensorView dq, TensorView dk, TensorView dv);
void LightningAttentionForward(const OpContext& context, const SequencePlan& plan,
                               absl::Span<const double> slopes, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                               TensorView out, TensorView final_state);
void LightningAttentionBackward(const OpContext& context, const SequencePlan& plan,
                                absl::Span<const double> slopes, ConstTensorView q,
                                ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                                ConstTensorView dout, ConstTensorView dfinal_state, TensorView dq,
                                TensorView dk, TensorView dv, TensorView dinitial_state);
void LightningAttentionBackwardQuery(const OpContext& context, const SequencePlan& plan,
                                     absl::Span<const double> slopes, ConstTensorView k,
                                     ConstTensorView v, ConstTensorView initial_state,
                                     ConstTensorView dout, TensorView dq);
void LightningAttentionBackwardKeyValue(const OpContext& context, const SequencePlan& plan,
                                        absl::Span<const double> slopes, ConstTensorView q,
                                        ConstTensorView k, ConstTensorView v, ConstTensorView dout,
                                        ConstTensorView dfinal_state, TensorView dk, TensorView dv,
                                        TensorView dinitial_state);
void LightningStateForward(const OpContext& context, const SequencePlan& plan,
                           absl::Span<const double> slopes, ConstTensorView k, ConstTensorView v,
                           TensorView final_state);
void LightningStateBackward(const OpContext& context, const SequencePlan& plan,
                            absl::Span<const double> slopes, ConstTensorView q,
                            ConstTensorView dout, TensorView dinitial_state);
void CombineStates(const OpContext& context, absl::Span<const double> slopes,
                   absl::Span<const StateTerm> terms, ConstTensorView sources, TensorView targets);
void MergeState(const OpContext& context, ConstTensorView part_out, ConstTensorView part_lse,
                TensorView out, TensorView lse);
void SetIdentityState(const OpContext& context, TensorView out, TensorView lse);

}  // namespace evenkeel::cuda
