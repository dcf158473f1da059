// What ops on a GPU share: the device and the matrix products' library.
#pragma once

#include "runtime/device/cuda_device.h"
#include "runtime/ops/cuda/matmul_cuda.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

struct CudaOps {
  CudaDevice* device;  // owned by whoever opened it, together with this struct
  CudaMatMul matmul;
};

// The stream that ops of this context enqueue on.
inline cudaStream_t StreamOf(const OpContext& context) {
  return context.cuda->device->stream();
}

// Notes a failed launch: see CudaDevice.
inline void Note(const OpContext& context, cudaError_t error, const char* op) {
  context.cuda->device->Note(error, op);
}

// Scratch memory of an op, in its arena; null for no bytes.
inline void* Scratch(const OpContext& context, size_t bytes) {
  if (bytes == 0) return nullptr;
  const auto words = static_cast<int64_t>((bytes + 3) / 4);
  return context.arena.Allocate(DType::kI32, {words}, MemoryPurpose::kWorkspace).data;
}

}  // namespace evenkeel
