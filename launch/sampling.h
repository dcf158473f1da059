// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

struct SamplingOptions {
  double temperature = 1;  // 0: greedy
  int64_t top_k = 0;       // keep the k most likely tokens; 0: all
  double top_p = 1;        // keep the smallest set with this much probability
  uint64_t seed = 0;
};

// Returns a token; the choice is a function of logits, options and `index` (the position being
// filled) alone. Ties are broken by the lower token. logits: one per token of the vocabulary,
// finite.
int32_t SampleToken(const std::vector<double>& logits, const SamplingOptions& options,
                    uint64_t index);

}  // namespace evenkeel
