// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019), as
// torch.optim.AdamW computes it:
//   w -= lr wd w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr / (1 - b1^step) m / (sqrt(v / (1 - b2^step)) + eps)
#pragma once

#include "runtime/ops/op_context.h"

namespace evenkeel {

struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

// Updates one range of parameters. All views are dense [N] and of one dtype. The gradient is
// multiplied by `gradient_scale` first (clipping). `step` counts from 1.
void AdamWStep(const OpContext& context, const AdamWConfig& config, double lr, int64_t step,
               double gradient_scale, ConstTensorView gradient, TensorView weight,
               TensorView exp_avg, TensorView exp_avg_sq);

}  // namespace evenkeel
