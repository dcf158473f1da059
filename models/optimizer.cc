#include "models/optimizer.h"

#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {

absl::StatusOr<Optimizer> Optimizer::Create(const OpContext& context, const Model& model,
                                            const AdamWConfig& config, MemoryTracker& tracker) {
  Optimizer optimizer;
  optimizer.config_ = config;
  // Neighbours with the same rule are one range.
  for (const ParameterSpec& spec : model.layout().specs()) {
    const double weight_decay = spec.decays && spec.trainable ? config.weight_decay : 0;
    if (optimizer.ranges_.empty() || optimizer.ranges_.back().weight_decay != weight_decay) {
      optimizer.ranges_.push_back({spec.offset, weight_decay});
    }
  }
  const auto create = [&] {
    return Tensor::Create(context.wide_dtype(), {model.layout().num_elements()},
                          MemoryPurpose::kOptimizer, tracker, context.device());
  };
  EK_ASSIGN_OR_RETURN(optimizer.exp_avg_, create());
  EK_ASSIGN_OR_RETURN(optimizer.exp_avg_sq_, create());
  return optimizer;
}

void Optimizer::Update(const OpContext& context, const AdamWStepParams& step, Model& model,
                       TensorView sum_of_squares) {
  const TraceScope trace(context, "optimizer");
  AddSquares(context, model.gradients().view(), sum_of_squares);
  ClippedAdamW(context, config_, step, ranges_, sum_of_squares,
               {model.gradients().view(), model.weights().view(), exp_avg_.view(),
                exp_avg_sq_.view(), model.copy()});
}

}  // namespace evenkeel
