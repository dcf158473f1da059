#include "runtime/ops/mirrored_array.h"

#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel {

Indices Mirror(const OpContext& context, Indices array) {
  EK_PASS_ON_TO_CUDA(context, Mirror(context, array))
  return array;
}

Positions Mirror(const OpContext& context, Positions array) {
  EK_PASS_ON_TO_CUDA(context, Mirror(context, array))
  return array;
}

}  // namespace evenkeel
