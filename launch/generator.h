// Text generation with a model: prompt in, tokens out one by one.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "launch/sampling.h"
#include "models/model.h"

namespace evenkeel {

struct GenerationOptions {
  SamplingOptions sampling;
  int64_t max_new_tokens = 256;
  int32_t stop_token = -1;  // ends the text when generated; -1: none
};

// Feeds `prompt` (at least one token, each below the vocabulary's size) and calls `emit` with every
// token generated; emit returns false to stop. Fails if the logits are not finite or memory for the
// cache is not to be had.
absl::Status Generate(const OpContext& context, Model& model, absl::Span<const int32_t> prompt,
                      const GenerationOptions& options, MemoryTracker& tracker,
                      const std::function<bool(int32_t token)>& emit);

}  // namespace evenkeel
