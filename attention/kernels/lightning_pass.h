// Lightning attention of whole documents: the chunks of lightning_chunk.h, spread over threads.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "runtime/ops/op_context.h"

namespace evenkeel::lightning {

// Rows of tokens and heads: element (t, h, i) at data[t * token_stride + h * head_stride + i].
template <typename T>
struct HeadRows {
  T* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// States of documents and heads, with any strides, so that a state can be read as its transpose. A
// null data is zero (read) or not wanted (written).
template <typename T>
struct StateArray {
  T* data = nullptr;
  int64_t document_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

// out_t = sum_{s <= t} lambda^(t - s) (q_t . k_s) v_s + the part of the initial state, per
// document; with `reverse`, the sum runs over s >= t and the state comes from the document's end:
//   forward:  S_t = lambda S_{t-1} + k_t v_t^T,  out_t = S_t^T q_t,                 final = S_{n-1}
//   reverse:  R_t = lambda R_{t+1} + k_t v_t^T,  out_t = R_t^T q_t,  lambda R_n = initial,
//                                                                    final = lambda R_0
// The three gradients of lightning attention are such passes as well. With null q and out only the
// final states are computed.
template <typename T>
struct LightningPass {
  bool reverse = false;
  int64_t num_heads = 0;              // H
  int64_t key_size = 0;               // D
  int64_t value_size = 0;             // E
  HeadRows<const T> q;                // [T, H, D], or null
  HeadRows<const T> k;                // [T, H, D]
  HeadRows<const T> v;                // [T, H, E]
  HeadRows<T> out;                    // [T, H, E], or null
  StateArray<const T> initial_state;  // [B, H, D, E]
  StateArray<T> final_state;          // [B, H, D, E], dense columns; may be initial_state
};

// Runs the pass. Scratch is that of a thread for a chunk, and where the sequence itself is cut over
// threads a few states a thread: it does not grow with the length of the sequence.
template <typename T>
void RunLightningPass(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                      absl::Span<const double> slopes, const LightningPass<T>& pass);

}  // namespace evenkeel::lightning
