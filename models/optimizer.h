// AdamW over the flat parameter buffer, with clipping by the global norm of the gradient.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "models/model.h"
#include "runtime/ops/adamw.h"

namespace evenkeel {

class Optimizer {
 public:
  // Allocates the two moments, zero.
  static absl::StatusOr<Optimizer> Create(const Model& model, const AdamWConfig& config,
                                          MemoryTracker& tracker);

  // Returns the norm of all gradients.
  static double GradientNorm(const OpContext& context, const Model& model);

  // Updates the weights from the gradients times `gradient_scale`, and clears the gradients. `step`
  // counts updates from 1.
  void Step(const OpContext& context, double lr, int64_t step, double gradient_scale, Model& model);

  Tensor& exp_avg() { return exp_avg_; }
  Tensor& exp_avg_sq() { return exp_avg_sq_; }

 private:
  AdamWConfig config_;
  Tensor exp_avg_;
  Tensor exp_avg_sq_;
};

}  // namespace evenkeel
