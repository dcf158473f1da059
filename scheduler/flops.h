// Floating-point operations of training, by the honest formula: what the mathematics needs, per
// document and causal, recomputation not counted.
//   matrix products   2 FLOPs a parameter and token forward, twice that backward
//   softmax attention 2 (Dqk + Dv) H FLOPs a (query, key) pair forward, twice that backward
//   linear attention  4 Dqk Dv H FLOPs a token forward (state update and readout), twice backward
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "scheduler/model_shape.h"

namespace evenkeel {

struct StepFlops {
  double matmul = 0;
  double softmax_attention = 0;
  double linear_attention = 0;
  double total() const { return matmul + softmax_attention + linear_attention; }
};

// Forward and backward of documents of the given lengths.
StepFlops TrainingFlops(const ModelShape& shape, absl::Span<const int64_t> document_lengths);

}  // namespace evenkeel
