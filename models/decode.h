// Generation token by token: the state a model keeps of the tokens seen so far, and the step that
// extends it. Softmax layers keep their keys and values; lightning layers a state of constant size.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "models/model.h"

namespace evenkeel {

class DecodeCache {
 public:
  // Room for `capacity` tokens of one sequence. The memory of lightning layers does not depend on
  // it.
  static absl::StatusOr<DecodeCache> Create(const OpContext& context, const Model& model,
                                            int64_t capacity, MemoryTracker& tracker);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }

 private:
  friend void DecodeStep(const OpContext&, Model&, absl::Span<const int32_t>, DecodeCache&,
                         TensorView);

  struct LayerCache {
    Tensor k;      // [capacity, G, D]
    Tensor v;      // [capacity, G, D]
    Tensor state;  // [1, H, Dq, D], of the wide dtype
  };

  std::vector<LayerCache> layers_;
  int64_t length_ = 0;
  int64_t capacity_ = 0;
};

// For a whole model on one rank. Feeds `tokens` (a whole prompt, or one token) that follow what the
// cache has seen, and fills logits [1, V] for the token after the last. cache.length() +
// tokens.size() must not exceed the capacity; there is at least one token.
void DecodeStep(const OpContext& context, Model& model, absl::Span<const int32_t> tokens,
                DecodeCache& cache, TensorView logits);

}  // namespace evenkeel
