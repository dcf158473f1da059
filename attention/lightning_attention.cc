#include "attention/lightning_attention.h"

#include "attention/kernels/cuda/attention_ops.h"
#include "attention/kernels/lightning_pass.h"
#include "runtime/base/check.h"

namespace evenkeel {
namespace {

using lightning::HeadRows;
using lightning::LightningPass;
using lightning::RunLightningPass;
using lightning::StateArray;

template <typename T>
HeadRows<const T> Rows(ConstTensorView x) {
  return {x.as<T>(), x.stride(0), x.stride(1)};
}

template <typename T>
HeadRows<T> Rows(TensorView x) {
  return {x.as<T>(), x.stride(0), x.stride(1)};
}

template <typename T>
StateArray<const T> States(ConstTensorView x) {
  return {x.as<T>(), x.stride(0), x.stride(1), x.stride(2), 1};
}

template <typename T>
StateArray<T> States(TensorView x) {
  return {x.as<T>(), x.stride(0), x.stride(1), x.stride(2), 1};
}

// The same states, read as [B, H, E, D].
template <typename T>
StateArray<const T> Transposed(StateArray<const T> x) {
  return {x.data, x.document_stride, x.head_stride, x.column_stride, x.row_stride};
}

// Checks that x is [T, H, size] of `dtype`.
void CheckRows(ConstTensorView x, Shape shape, DType dtype) {
  EK_CHECK(x.shape == shape && x.dtype == dtype && (x.data != nullptr || x.num_elements() == 0))
      << x.shape.ToString() << " where " << shape.ToString() << " is due";
}

void CheckState(ConstTensorView x, Shape shape, DType dtype) {
  EK_CHECK(x.empty() || (x.shape == shape && x.dtype == dtype))
      << "state " << x.shape.ToString() << " where " << shape.ToString() << " is due";
}

struct Sizes {
  int64_t num_documents = 0;  // B
  int64_t num_tokens = 0;     // T
  int64_t num_heads = 0;      // H
  int64_t key_size = 0;       // D
  int64_t value_size = 0;     // E

  Shape key_rows() const { return {num_tokens, num_heads, key_size}; }
  Shape value_rows() const { return {num_tokens, num_heads, value_size}; }
  Shape states() const { return {num_documents, num_heads, key_size, value_size}; }
};

Sizes CheckedSizes(absl::Span<const int64_t> cu_seqlens, absl::Span<const double> slopes,
                   ConstTensorView q, ConstTensorView k, ConstTensorView v) {
  EK_CHECK(q.rank() == 3 && v.rank() == 3) << q.shape.ToString() << ", " << v.shape.ToString();
  EK_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0 && cu_seqlens.back() == q.dim(0))
      << "cu_seqlens does not cover the " << q.dim(0) << " tokens";
  for (size_t b = 1; b < cu_seqlens.size(); ++b) {
    EK_CHECK(cu_seqlens[b - 1] <= cu_seqlens[b])
        << "document " << b - 1 << " ends before it begins";
  }
  const Sizes sizes = {static_cast<int64_t>(cu_seqlens.size()) - 1, q.dim(0), q.dim(1), q.dim(2),
                       v.dim(2)};
  EK_CHECK(static_cast<int64_t>(slopes.size()) == sizes.num_heads) << slopes.size() << " slopes";
  for (double slope : slopes) EK_CHECK(slope >= 0) << "slope " << slope;
  CheckRows(q, sizes.key_rows(), q.dtype);
  CheckRows(k, sizes.key_rows(), q.dtype);
  CheckRows(v, sizes.value_rows(), q.dtype);
  return sizes;
}

}  // namespace

void LightningAttentionForward(const OpContext& context, const SequencePlan& plan,
                               absl::Span<const double> slopes, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                               TensorView out, TensorView final_state) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, q, k, v);
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
void LightningAttentionBackward(const OpContext& context, const SequencePlan& plan,
                                absl::Span<const double> slopes, ConstTensorView q,
                                ConstTensorView k, ConstTensorView v, ConstTensorView initial_state,
                                ConstTensorView dout, ConstTensorView dfinal_state, TensorView dq,
                                TensorView dk, TensorView dv, TensorView dinitial_state) {
  const Sizes sizes = CheckedSizes(plan.cu_seqlens, slopes, q, k, v);
  CheckRows(dout, sizes.value_rows(), q.dtype);
  CheckRows(dq, sizes.key_rows(), q.dtype);
  CheckRows(dk, sizes.key_rows(), q.dtype);
  CheckRows(dv, sizes.value_rows(), q.dtype);
  CheckState(initial_state, sizes.states(), WideDType(q.dtype));
  CheckState(dfinal_state, sizes.states(), WideDType(q.dtype));
  CheckState(dinitial_state, sizes.states(), WideDType(q.dtype));
  EK_TRACE_ON_CUDA(context, LightningAttentionBackward, plan, slopes, q, k, v, initial_state, dout,
                   dfinal_state, dq, dk, dv, dinitial_state)
  DispatchFloat(q.dtype, [&]<typename T>() {
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

    pass.reverse = true;
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

}  // namespace evenkeel
