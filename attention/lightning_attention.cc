#include "attention/lightning_attention.h"

#include "attention/kernels/cuda/attention_ops.h"
#include "attention/kernels/lightning_pass.h"
#include "attention/lightning_operands.h"

namespace evenkeel {
namespace {

using lightning::CheckedSizes;
using lightning::CheckRows;
using lightning::CheckState;
using lightning::LightningPass;
using lightning::Rows;
using lightning::RunLightningPass;
using lightning::Sizes;
using lightning::States;
using lightning::Transposed;

}  // namespace

void LightningAttentionForward(const OpContext& context, const SequencePlan& plan,
                               absl::Span<const double> slopes, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                               TensorView out, TensorView final_state) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, q, v);
  CheckRows(k, sizes.key_rows(), q.dtype);
  CheckRows(out, sizes.value_rows(), q.dtype);
  CheckState(initial_state, sizes.states(), WideDType(q.dtype));
  CheckState(final_state, sizes.states(), WideDType(q.dtype));
  EK_TRACE_ON_CUDA(context, LightningAttentionForward, plan, slopes, q, k, v, initial_state, out,
                   final_state)
  DispatchFloat(q.dtype, [&]<typename T>() {
    LightningPass<T> pass;
    pass.num_heads = sizes.num_heads;
    pass.key_size = sizes.key_size;
    pass.value_size = sizes.value_size;
    pass.q = Rows<T>(q);
    pass.k = Rows<T>(k);
    pass.v = Rows<T>(v);
    pass.out = Rows<T>(out);
    pass.initial_state = States<T>(initial_state);
    pass.final_state = States<T>(final_state);
    RunLightningPass(context, plan.cu_seqlens, slopes, pass);
  });
}

// With dS_t = lambda dS_{t+1} + q_t do_t^T, and lambda dS_n standing for dfinal_state:
//   dq_t = S_t do_t    dk_t = dS_t v_t    dv_t = dS_t^T k_t    dinitial_state = lambda dS_0
// Each has the form of the forward pass under other names: dq reads the states forward as its
// transpose, dk and dv read dS from the end.
void LightningAttentionBackwardQuery(const OpContext& context, const SequencePlan& plan,
                                     absl::Span<const double> slopes, ConstTensorView k,
                                     ConstTensorView v, ConstTensorView initial_state,
                                     ConstTensorView dout, TensorView dq) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, k, v);
  CheckRows(dout, sizes.value_rows(), k.dtype);
  CheckRows(dq, sizes.key_rows(), k.dtype);
  CheckState(initial_state, sizes.states(), WideDType(k.dtype));
  EK_TRACE_ON_CUDA(context, LightningAttentionBackwardQuery, plan, slopes, k, v, initial_state,
                   dout, dq)
  DispatchFloat(k.dtype, [&]<typename T>() {
    LightningPass<T> pass;
    pass.num_heads = sizes.num_heads;
    pass.key_size = sizes.value_size;
    pass.value_size = sizes.key_size;
    pass.q = Rows<T>(dout);
    pass.k = Rows<T>(v);
    pass.v = Rows<T>(k);
    pass.out = Rows<T>(dq);
    pass.initial_state = Transposed(States<T>(initial_state));
    RunLightningPass(context, plan.cu_seqlens, slopes, pass);
  });
}

void LightningAttentionBackwardKeyValue(const OpContext& context, const SequencePlan& plan,
                                        absl::Span<const double> slopes, ConstTensorView q,
                                        ConstTensorView k, ConstTensorView v, ConstTensorView dout,
                                        ConstTensorView dfinal_state, TensorView dk, TensorView dv,
                                        TensorView dinitial_state) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, q, v);
  CheckRows(k, sizes.key_rows(), q.dtype);
  CheckRows(dout, sizes.value_rows(), q.dtype);
  CheckRows(dk, sizes.key_rows(), q.dtype);
  CheckRows(dv, sizes.value_rows(), q.dtype);
  CheckState(dfinal_state, sizes.states(), WideDType(q.dtype));
  CheckState(dinitial_state, sizes.states(), WideDType(q.dtype));
  EK_TRACE_ON_CUDA(context, LightningAttentionBackwardKeyValue, plan, slopes, q, k, v, dout,
                   dfinal_state, dk, dv, dinitial_state)
  DispatchFloat(q.dtype, [&]<typename T>() {
    LightningPass<T> pass;
    pass.num_heads = sizes.num_heads;
    pass.reverse = true;
    pass.key_size = sizes.value_size;
    pass.value_size = sizes.key_size;
    pass.q = Rows<T>(v);
    pass.k = Rows<T>(dout);
    pass.v = Rows<T>(q);
    pass.out = Rows<T>(dk);
    pass.initial_state = Transposed(States<T>(dfinal_state));
    RunLightningPass(context, plan.cu_seqlens, slopes, pass);

    pass.key_size = sizes.key_size;
    pass.value_size = sizes.value_size;
    pass.q = Rows<T>(k);
    pass.k = Rows<T>(q);
    pass.v = Rows<T>(dout);
    pass.out = Rows<T>(dv);
    pass.initial_state = States<T>(dfinal_state);
    pass.final_state = States<T>(dinitial_state);
    RunLightningPass(context, plan.cu_seqlens, slopes, pass);
  });
}

void LightningAttentionBackward(const OpContext& context, const SequencePlan& plan,
                                absl::Span<const double> slopes, ConstTensorView q,
                                ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                                ConstTensorView dout, ConstTensorView dfinal_state, TensorView dq,
                                TensorView dk, TensorView dv, TensorView dinitial_state) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, q, v);
  for (const ConstTensorView& x : {k, ConstTensorView(dq), ConstTensorView(dk)}) {
    CheckRows(x, sizes.key_rows(), q.dtype);
  }
  for (const ConstTensorView& x : {dout, ConstTensorView(dv)}) {
    CheckRows(x, sizes.value_rows(), q.dtype);
  }
  for (const ConstTensorView& x : {initial_state, dfinal_state, ConstTensorView(dinitial_state)}) {
    CheckState(x, sizes.states(), WideDType(q.dtype));
  }
  EK_TRACE_ON_CUDA(context, LightningAttentionBackward, plan, slopes, q, k, v, initial_state, dout,
                   dfinal_state, dq, dk, dv, dinitial_state)
  LightningAttentionBackwardQuery(context, plan, slopes, k, v, initial_state, dout, dq);
  LightningAttentionBackwardKeyValue(context, plan, slopes, q, k, v, dout, dfinal_state, dk, dv,
                                     dinitial_state);
}

}  // namespace evenkeel
