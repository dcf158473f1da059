#include "models/optimizer.h"

#include "runtime/base/status_macros.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {

absl::StatusOr<Optimizer> Optimizer::Create(const OpContext& context, const Model& model,
                                            const AdamWConfig& config, MemoryTracker& tracker) {
  Optimizer optimizer;
  optimizer.config_ = config;
  // What the rank owns, in order; neighbours with the same rule are one range.
  ForEachOwned(model.layout(), model.store().owned(),
               [&](const ParameterSpec& spec, int64_t begin, int64_t) {
                 const double decay = spec.decays && spec.trainable ? config.weight_decay : 0;
                 auto& ranges = optimizer.ranges_;
                 if (ranges.empty()) begin = 0;
                 if (ranges.empty() || ranges.back().weight_decay != decay) {
                   ranges.push_back({begin, decay});
                 }
               });
  const auto create = [&] {
    return Tensor::Create(context.wide_dtype(), {model.store().num_owned()},
                          MemoryPurpose::kOptimizer, tracker, context.device());
  };
  EK_ASSIGN_OR_RETURN(optimizer.exp_avg_, create());
  EK_ASSIGN_OR_RETURN(optimizer.exp_avg_sq_, create());
  return optimizer;
}

void Optimizer::Update(const OpContext& context, const AdamWStepParams& step, Model& model,
                       ConstTensorView sum_of_squares) {
  const TraceScope trace(context, "optimizer");
  ClippedAdamW(context, config_, step, ranges_, sum_of_squares,
               {model.gradients().view(), model.weights().view(), exp_avg_.view(),
                exp_avg_sq_.view(), model.store().rounded()});
  model.store().ClearGradients(context);
  model.store().PublishWeights(context, /*is_rounded=*/true);
}

}  // namespace evenkeel
