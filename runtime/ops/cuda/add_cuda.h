// Sums of two tensors on CUDA, with the meaning of Add and AddWide in runtime/ops/elementwise.h;
// sm_80 and later. Fast for rows aligned to 16 bytes, right for any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace evenkeel {

// y = a + b, [rows, columns] each. Both bf16, or a float32 and b either; y is of a's dtype.
struct AddParams {
  int64_t rows = 0;
  int64_t columns = 0;
  bool float_a = false;  // float32 a and y rather than bf16
  bool float_b = false;  // float32 b rather than bf16; with float_a only
  const void* a = nullptr;
  const void* b = nullptr;
  void* y = nullptr;                                 // may be a or b
  int64_t a_stride = 0, b_stride = 0, y_stride = 0;  // elements between rows
};

cudaError_t LaunchAdd(const AddParams& params, cudaStream_t stream);

}  // namespace evenkeel
