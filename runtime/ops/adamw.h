// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019), as
// torch.optim.AdamW computes it:
//   w -= lr wd w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr / (1 - b1^step) m / (sqrt(v / (1 - b2^step)) + eps)
#pragma once

#include "absl/types/span.h"
#include "runtime/ops/adamw_range.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

// What changes from step to step.
struct AdamWStepParams {
  double lr = 0;
  int64_t step = 1;      // counts from 1
  double clip_norm = 0;  // bound on the gradient's norm; 0: none
};

// Flat buffers of all parameters, dense [N], of the context's wide dtype but for `copy`.
struct AdamWTensors {
  TensorView gradient;  // set to zero
  TensorView weight, exp_avg, exp_avg_sq;
  TensorView copy;  // receives the weights in the dtype that ops compute with; may be empty
};

// Updates all parameters from their gradients, clipped by the norm whose square is in
// sum_of_squares [1] (float64); where that is not finite, weights and moments stay as they are.
// Clears the gradients. `ranges` are ascending, the first begins at 0; config.weight_decay is not
// read. What is not trained has a gradient of zero and no decay, so it stays.
void ClippedAdamW(const OpContext& context, const AdamWConfig& config, const AdamWStepParams& step,
                  absl::Span<const AdamWRange> ranges, ConstTensorView sum_of_squares,
                  const AdamWTensors& tensors);

// Updates one range of parameters, on the CPU alone. All views are dense [N] and of one dtype. The
// gradient is multiplied by `gradient_scale` first (clipping). `step` counts from 1.
void AdamWStep(const OpContext& context, const AdamWConfig& config, double lr, int64_t step,
               double gradient_scale, ConstTensorView gradient, TensorView weight,
               TensorView exp_avg, TensorView exp_avg_sq);

}  // namespace evenkeel
