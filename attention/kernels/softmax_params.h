// What the softmax attention kernels of the CPU are given.
#pragma once

#include <cstdint>

#include "runtime/tensor/tensor_view.h"

namespace evenkeel {

// How a score s = q.k becomes a weight: exp(scale s - lse), or relu(scale s) without a denominator.
enum class Weighting { kSoftmax, kRelu };

// A tensor [rows, heads, size] whose innermost dimension is dense. Strides count elements.
template <typename T>
struct HeadRows {
  T* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  T* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

template <typename T>
HeadRows<const T> RowsOf(const ConstTensorView& view) {
  return {view.as<T>(), view.stride(0), view.stride(1)};
}

template <typename T>
HeadRows<T> MutableRowsOf(const TensorView& view) {
  return {view.as<T>(), view.stride(0), view.stride(1)};
}

template <typename T>
struct SoftmaxForwardParams {
  HeadRows<const T> q, k, v;
  HeadRows<T> out;
  HeadRows<T> lse;  // one number a row and head; data is null for Weighting::kRelu
  int64_t num_kv_heads = 1;
  int64_t group = 1;       // query heads per key/value head
  int64_t head_size = 0;   // D, of q and k
  int64_t value_size = 0;  // E, of v and out
  double scale = 1;
};

template <typename T>
struct SoftmaxBackwardParams {
  HeadRows<const T> q, k, v, dout;
  HeadRows<T> dq, dk, dv;
  HeadRows<const T> out, lse;  // of the forward pass; unused for Weighting::kRelu
  int64_t num_kv_heads = 1;
  int64_t group = 1;
  int64_t head_size = 0;
  int64_t value_size = 0;
  double scale = 1;
};

}  // namespace evenkeel
