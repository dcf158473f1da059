// What the ops that put tensors in front of attention's launchers share.
#pragma once

#include <cstddef>

#include "runtime/base/check.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/tensor/tensor_view.h"

namespace evenkeel::cuda {

// A copy of `bytes` host bytes in the arena.
inline void* Uploaded(const OpContext& context, const void* host, size_t bytes) {
  void* copy = Scratch(context, bytes);
  context.cuda->device->Upload(host, copy, static_cast<int64_t>(bytes));
  return copy;
}

// Checks that x is bf16 [rows, heads, size] with dense heads.
inline void CheckHeads(const ConstTensorView& x) {
  EK_CHECK(x.rank() == 3 && x.dtype == DType::kBF16 && (x.dim(1) == 1 || x.stride(1) == x.dim(2)))
      << x.shape.ToString();
}

}  // namespace evenkeel::cuda
