// Keys and values of a token side by side, as they travel. Private to attention/.
#pragma once

#include "runtime/ops/elementwise.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Columns of [rows, G (Dq + D)]: keys, then values.
struct KeyValueShape {
  int64_t num_heads = 0;   // G
  int64_t key_size = 0;    // Dq
  int64_t value_size = 0;  // D

  KeyValueShape(const ConstTensorView& k, const ConstTensorView& v)
      : num_heads(k.dim(1)), key_size(k.dim(2)), value_size(v.dim(2)) {}
  int64_t width() const { return num_heads * (key_size + value_size); }
  template <typename View>
  View Keys(const View& rows) const {
    return rows.Columns(0, num_heads * key_size).SplitHeads(num_heads);
  }
  template <typename View>
  View Values(const View& rows) const {
    return rows.Columns(num_heads * key_size, width()).SplitHeads(num_heads);
  }
};

inline void PackKeysAndValues(const OpContext& context, const KeyValueShape& shape,
                              ConstTensorView k, ConstTensorView v, TensorView rows) {
  Copy(context, k.MergeHeads(), shape.Keys(rows).MergeHeads());
  Copy(context, v.MergeHeads(), shape.Values(rows).MergeHeads());
}

// Also converts.
inline void UnpackKeysAndValues(const OpContext& context, const KeyValueShape& shape,
                                ConstTensorView rows, TensorView k, TensorView v) {
  Copy(context, shape.Keys(rows).MergeHeads(), k.MergeHeads());
  Copy(context, shape.Values(rows).MergeHeads(), v.MergeHeads());
}

}  // namespace evenkeel
