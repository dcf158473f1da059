// AdamW over the parameters that a rank owns, with clipping by the global norm of the gradient.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model.h"
#include "runtime/ops/adamw.h"

namespace evenkeel {

class Optimizer {
 public:
  // Allocates the two moments, zero.
  static absl::StatusOr<Optimizer> Create(const OpContext& context, const Model& model,
                                          const AdamWConfig& config, MemoryTracker& tracker);

  // Updates the weights (and what ops read of them) from the gradients, clipped by the norm whose
  // square is in sum_of_squares [1] (float64; Model::FinishGradients); where that is not finite
  // they stay as they are. Clears the gradients.
  void Update(const OpContext& context, const AdamWStepParams& step, Model& model,
              ConstTensorView sum_of_squares);

  Tensor& exp_avg() { return exp_avg_; }
  Tensor& exp_avg_sq() { return exp_avg_sq_; }

 private:
  AdamWConfig config_;
  std::vector<AdamWRange> ranges_;
  Tensor exp_avg_;
  Tensor exp_avg_sq_;
};

}  // namespace evenkeel
