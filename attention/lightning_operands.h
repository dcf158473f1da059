// How the tensors of lightning attention reach its passes, and what is checked of them on the way:
// for the files that put tensors in front of kernels/lightning_pass.h.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "attention/kernels/lightning_pass.h"
#include "runtime/base/check.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel::lightning {

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

// Checks that x is [T, H, size] of `dtype`.
inline void CheckRows(ConstTensorView x, Shape shape, DType dtype) {
  EK_CHECK(x.shape == shape && x.dtype == dtype && (x.data != nullptr || x.num_elements() == 0))
      << x.shape.ToString() << " where " << shape.ToString() << " is due";
}

// Checks that x is [B, H, D, E] of `dtype`, or empty.
inline void CheckState(ConstTensorView x, Shape shape, DType dtype) {
  EK_CHECK(x.empty() || (x.shape == shape && x.dtype == dtype))
      << "state " << x.shape.ToString() << " where " << shape.ToString() << " is due";
}

inline void CheckSlopes(absl::Span<const double> slopes, int64_t num_heads) {
  EK_CHECK(static_cast<int64_t>(slopes.size()) == num_heads) << slopes.size() << " slopes";
  for (double slope : slopes) EK_CHECK(slope >= 0) << "slope " << slope;
}

// The sizes of a call with q or k in `keys` [T, H, D] and v or dout in `values` [T, H, E].
inline Sizes CheckedSizes(absl::Span<const int64_t> cu_seqlens, absl::Span<const double> slopes,
                          ConstTensorView keys, ConstTensorView values) {
  EK_CHECK(keys.rank() == 3 && values.rank() == 3)
      << keys.shape.ToString() << ", " << values.shape.ToString();
  EK_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0 && cu_seqlens.back() == keys.dim(0))
      << "cu_seqlens does not cover the " << keys.dim(0) << " tokens";
  for (size_t b = 1; b < cu_seqlens.size(); ++b) {
    EK_CHECK(cu_seqlens[b - 1] <= cu_seqlens[b])
        << "document " << b - 1 << " ends before it begins";
  }
  const Sizes sizes = {static_cast<int64_t>(cu_seqlens.size()) - 1, keys.dim(0), keys.dim(1),
                       keys.dim(2), values.dim(2)};
  CheckSlopes(slopes, sizes.num_heads);
  CheckRows(keys, sizes.key_rows(), keys.dtype);
  CheckRows(values, sizes.value_rows(), keys.dtype);
  return sizes;
}

}  // namespace evenkeel::lightning
