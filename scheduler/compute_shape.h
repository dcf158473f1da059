// How a device computes, as far as planning goes. Filled by models/.
#pragma once

#include <cstdint>

#include "parallel/token_shards.h"

namespace evenkeel {

// Which activations are computed again in the backward pass (models/block.h).
enum class RecomputePlan { kNone, kMlp, kAllButAttention, kLayer };

// Where attention is pooled its output is always kept: the last two are one.
inline bool ComputesProjectionAgain(RecomputePlan recompute) {
  return recompute >= RecomputePlan::kAllButAttention;
}

struct ComputeShape {
  int64_t element_bytes = 4;  // of activations
  int64_t wide_bytes = 4;     // of weights, gradients, optimizer state and statistics
  bool has_copy = false;      // a copy of the weights in the dtype of the activations
  ChunkLimits token_chunks;   // rows that the token-wise pieces work on at a time
  int64_t logits_rows = 512;  // rows of logits that exist at a time
  bool is_gpu = false;
  bool fp8 = false;  // products of blocks

  // Of a loss, and of each statistic of logits that are split over ranks.
  int64_t loss_bytes() const { return is_gpu ? 4 : 8; }
};

}  // namespace evenkeel
