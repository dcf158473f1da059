#include "models/optimizer.h"

#include <cmath>

#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {

absl::StatusOr<Optimizer> Optimizer::Create(const Model& model, const AdamWConfig& config,
                                            MemoryTracker& tracker) {
  Optimizer optimizer;
  optimizer.config_ = config;
  const Shape flat{model.layout().num_elements()};
  const DType dtype = model.weights().dtype();
  EK_ASSIGN_OR_RETURN(optimizer.exp_avg_,
                      Tensor::Create(dtype, flat, MemoryPurpose::kOptimizer, tracker));
  EK_ASSIGN_OR_RETURN(optimizer.exp_avg_sq_,
                      Tensor::Create(dtype, flat, MemoryPurpose::kOptimizer, tracker));
  return optimizer;
}

double Optimizer::GradientNorm(const OpContext& context, const Model& model) {
  return std::sqrt(SumOfSquares(context, model.gradients().view()));
}

void Optimizer::Step(const OpContext& context, double lr, int64_t step, double gradient_scale,
                     Model& model) {
  // Neighbours with the same rule are updated in one call.
  const auto& specs = model.layout().specs();
  for (size_t first = 0; first < specs.size();) {
    size_t last = first + 1;
    while (last < specs.size() && specs[last].decays == specs[first].decays &&
           specs[last].trainable == specs[first].trainable) {
      ++last;
    }
    const int64_t begin = specs[first].offset;
    const int64_t end = specs[last - 1].offset + specs[last - 1].size();
    if (specs[first].trainable) {
      AdamWConfig config = config_;
      if (!specs[first].decays) config.weight_decay = 0;
      AdamWStep(context, config, lr, step, gradient_scale,
                model.gradients().view().Rows(begin, end), model.weights().view().Rows(begin, end),
                exp_avg_.view().Rows(begin, end), exp_avg_sq_.view().Rows(begin, end));
    }
    first = last;
  }
  SetZero(context, model.gradients().view());
}

}  // namespace evenkeel
