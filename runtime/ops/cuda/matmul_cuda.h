// Matrix products on CUDA through cuBLASLt: bf16 or FP8 operands, float32 accumulation. Row-major,
// with the meaning of runtime/ops/matmul.h.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/ops/matmul.h"

namespace evenkeel {

// out = op(a) op(b) + bias + beta c, with op(a) [M, K], op(b) [K, N], c and out [M, N]. A
// transposed operand is stored [K, M] (or [N, K]). Rows may be strided.
struct CudaMatMulParams {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const void* a = nullptr;  // of a_type
  const void* b = nullptr;  // of b_type
  // bf16; or FP8, for both (not E5M2 for both), with a as it is and b transposed, and sizes in
  // memory of multiples of 16. Operands in FP8 are multiplied with *a_scale and *b_scale on the
  // device, which cuBLASLt wants aligned to 16 bytes.
  DType a_type = DType::kBF16;
  DType b_type = DType::kBF16;
  const float* a_scale = nullptr;
  const float* b_scale = nullptr;
  bool short_sums = false;  // FP8: sums in the tensor cores' own, shorter accumulators; faster
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  float beta = 0.0f;
  const void* c = nullptr;  // of out's type; null: out. Read only if beta is not 0
  void* out = nullptr;      // bf16, or float32 if float_out
  bool float_out = false;
  const void* bias = nullptr;  // bf16 [N], or null; with bf16 output only
  int64_t a_stride = 0;        // elements between rows as stored
  int64_t b_stride = 0;
  int64_t c_stride = 0;
  int64_t out_stride = 0;
};

// Runs products on one GPU and keeps the algorithm chosen for each shape: the first product of a
// shape costs the host some tens of microseconds, later ones about one. Not thread-safe.
//
// Equal calls give equal bits: algorithms that add up in an order of chance are left out. A shape
// begins with what cuBLASLt's heuristic puts first. One that came up kUsesBeforeTuning times is
// tuned once: the heuristic's next choices are timed too (some are 5 to 15 % faster), and of those
// that give the very bits of the first, the fastest is kept. So results do not depend on what was
// timed.
class CudaMatMul {
 public:
  // `workspace` is device memory, aligned to 256 bytes, and belongs to products on one stream at a
  // time; 32 MiB serve Hopper well. Fails with kInternal if cuBLASLt cannot start.
  static absl::StatusOr<CudaMatMul> Create(void* workspace, size_t workspace_bytes);

  CudaMatMul(CudaMatMul&& other) noexcept;
  CudaMatMul& operator=(CudaMatMul&&) = delete;
  CudaMatMul(const CudaMatMul&) = delete;
  CudaMatMul& operator=(const CudaMatMul&) = delete;
  ~CudaMatMul();

  // Enqueues a product. Sizes of 0 are fine (K = 0 gives beta c, without bias). Fails with
  // kInvalidArgument if no algorithm takes the shape (strides of odd numbers of bf16, say).
  absl::Status Run(const CudaMatMulParams& params, cudaStream_t stream);

 private:
  // All that the choice of an algorithm depends on; the last entry packs flags and alignments.
  using Key = std::array<int64_t, 8>;
  struct Choice {
    cublasLtMatmulAlgo_t algorithm;
    int64_t uses = 0;
  };
  // More than evaluation makes of a length, fewer than training makes in its first steps.
  static constexpr int64_t kUsesBeforeTuning = 100;

  CudaMatMul(cublasLtHandle_t handle, void* workspace, size_t workspace_bytes)
      : handle_(handle), workspace_(workspace), workspace_bytes_(workspace_bytes) {}

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  std::map<Key, Choice> choices_;
};

}  // namespace evenkeel
