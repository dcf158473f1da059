#include "runtime/ops/cuda/matmul_cuda.h"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/cuda/same_bits.h"

namespace evenkeel {
namespace {

absl::Status ToStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cublasLtGetStatusString(status));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    return absl::InvalidArgumentError(message);
  }
  return absl::InternalError(message);
}

struct Destroy {
  void operator()(cublasLtMatmulDesc_t p) const { (void)cublasLtMatmulDescDestroy(p); }
  void operator()(cublasLtMatrixLayout_t p) const { (void)cublasLtMatrixLayoutDestroy(p); }
  void operator()(cublasLtMatmulPreference_t p) const { (void)cublasLtMatmulPreferenceDestroy(p); }
};
template <typename Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

// cuBLASLt is column-major, so it computes out^T = op(b)^T op(a)^T: a row-major matrix [R, C] is a
// column-major one of C rows and R columns.
absl::StatusOr<Owned<cublasLtMatrixLayout_t>> LayoutOf(cudaDataType_t type, int64_t rows,
                                                       int64_t columns, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  EK_RETURN_IF_ERROR(
      ToStatus(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(columns),
                                          static_cast<uint64_t>(rows), std::max(stride, columns)),
               "cublasLtMatrixLayoutCreate"));
  return Owned<cublasLtMatrixLayout_t>(layout);
}

cudaDataType_t TypeOf(DType dtype) {
  return dtype == DType::kF8E4M3   ? CUDA_R_8F_E4M3
         : dtype == DType::kF8E5M2 ? CUDA_R_8F_E5M2
                                   : CUDA_R_16BF;
}

struct Descriptors {
  Owned<cublasLtMatmulDesc_t> product;
  Owned<cublasLtMatrixLayout_t> a, b, c, out;
};

absl::StatusOr<Descriptors> Describe(const CudaMatMulParams& p) {
  Descriptors d;
  cublasLtMatmulDesc_t product = nullptr;
  EK_RETURN_IF_ERROR(ToStatus(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                              "cublasLtMatmulDescCreate"));
  d.product.reset(product);
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    return ToStatus(cublasLtMatmulDescSetAttribute(product, name, &value, sizeof(value)),
                    "cublasLtMatmulDescSetAttribute");
  };
  const auto operation = [](Transpose t) {
    return t == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_TRANSA, operation(p.transpose_b)));
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_TRANSB, operation(p.transpose_a)));
  if (p.bias != nullptr) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue));
    EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias));
  }
  if (p.a_scale != nullptr) {
    // "a" of cuBLASLt is our b.
    EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.b_scale));
    EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.a_scale));
    EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(p.short_sums)));
  }
  const cudaDataType_t out_type = p.float_out ? CUDA_R_32F : CUDA_R_16BF;
  const bool ta = p.transpose_a == Transpose::kYes, tb = p.transpose_b == Transpose::kYes;
  EK_ASSIGN_OR_RETURN(d.a, LayoutOf(TypeOf(p.a_type), ta ? p.k : p.m, ta ? p.m : p.k, p.a_stride));
  EK_ASSIGN_OR_RETURN(d.b, LayoutOf(TypeOf(p.b_type), tb ? p.n : p.k, tb ? p.k : p.n, p.b_stride));
  EK_ASSIGN_OR_RETURN(d.out, LayoutOf(out_type, p.m, p.n, p.out_stride));
  EK_ASSIGN_OR_RETURN(d.c,
                      LayoutOf(out_type, p.m, p.n, p.c != nullptr ? p.c_stride : p.out_stride));
  return d;
}

// The largest power of two up to 256 that divides the address, as its exponent.
uint32_t AlignmentBits(const void* p) {
  uint32_t bits = 0;
  while (bits < 8 && reinterpret_cast<uintptr_t>(p) % (uintptr_t{2} << bits) == 0) ++bits;
  return bits;
}

// The heuristic's first choices, best first; at least one, at most `count`.
absl::StatusOr<std::vector<cublasLtMatmulAlgo_t>> FindAlgorithms(cublasLtHandle_t handle,
                                                                 const CudaMatMulParams& p,
                                                                 const Descriptors& d,
                                                                 size_t workspace_bytes,
                                                                 int count) {
  cublasLtMatmulPreference_t preference = nullptr;
  EK_RETURN_IF_ERROR(
      ToStatus(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  const Owned<cublasLtMatmulPreference_t> owner(preference);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    return ToStatus(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof(value)),
                    "cublasLtMatmulPreferenceSetAttribute");
  };
  const uint64_t workspace = workspace_bytes;
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace));
  // Split sums are added by one pass over the workspace, in order, and in float32.
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes));
  const auto alignment = [](const void* q) { return uint32_t{1} << AlignmentBits(q); };
  const void* c = p.c != nullptr ? p.c : p.out;
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.b)));
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.a)));
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(c)));
  EK_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.out)));
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  EK_RETURN_IF_ERROR(ToStatus(
      cublasLtMatmulAlgoGetHeuristic(handle, d.product.get(), d.b.get(), d.a.get(), d.c.get(),
                                     d.out.get(), preference, count, results.data(), &found),
      "cublasLtMatmulAlgoGetHeuristic"));
  if (found == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no algorithm for a product of [", p.m, ", ", p.k, "] and [", p.k, ", ", p.n,
                     "] with row strides ", p.a_stride, ", ", p.b_stride, " and ", p.out_stride));
  }
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) algorithms.push_back(results[static_cast<size_t>(i)].algo);
  return algorithms;
}

// What running a product takes besides its algorithm.
struct Runner {
  cublasLtHandle_t handle;
  const CudaMatMulParams& p;
  const Descriptors& d;
  void* workspace;
  size_t workspace_bytes;
  cudaStream_t stream;

  absl::Status Run(const cublasLtMatmulAlgo_t& algorithm, void* out) const {
    const float one = 1.0f;
    return ToStatus(cublasLtMatmul(handle, d.product.get(), &one, p.b, d.b.get(), p.a, d.a.get(),
                                   &p.beta, p.c != nullptr ? p.c : p.out, d.c.get(), out,
                                   d.out.get(), &algorithm, workspace, workspace_bytes, stream),
                    "cublasLtMatmul");
  }
};

// Device memory and events of a tuning.
struct TuningRoom {
  void* memory[3] = {};  // the first algorithm's result, another's, and whether they differ
  cudaEvent_t begin = nullptr, end = nullptr;

  bool Allocate(size_t bytes) {
    const size_t sizes[3] = {bytes, bytes, sizeof(int32_t)};
    for (int i = 0; i < 3; ++i) {
      if (cudaMalloc(&memory[i], sizes[i]) != cudaSuccess) {
        (void)cudaGetLastError();  // no room is no error
        return false;
      }
    }
    return cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess;
  }
  ~TuningRoom() {
    for (void* piece : memory) (void)cudaFree(piece);
    if (begin != nullptr) (void)cudaEventDestroy(begin);
    if (end != nullptr) (void)cudaEventDestroy(end);
  }
};

// Milliseconds of the fastest of a few runs; negative if it cannot run.
float TimeOf(const Runner& runner, const cublasLtMatmulAlgo_t& algorithm, const TuningRoom& room) {
  constexpr int kRuns = 4;
  float best = -1.0f;
  for (int i = 0; i < kRuns; ++i) {
    (void)cudaEventRecord(room.begin, runner.stream);
    if (!runner.Run(algorithm, room.memory[1]).ok()) return -1.0f;
    (void)cudaEventRecord(room.end, runner.stream);
    float ms = 0.0f;
    if (cudaEventSynchronize(room.end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, room.begin, room.end) != cudaSuccess) {
      return -1.0f;
    }
    if (best < 0.0f || ms < best) best = ms;
  }
  return best;
}

bool GivesTheSameBits(const Runner& runner, const TuningRoom& room) {
  const CudaMatMulParams& p = runner.p;
  const int64_t words = p.float_out ? 2 : 1;
  int32_t differs = 1;
  (void)cudaMemsetAsync(room.memory[2], 0, sizeof(differs), runner.stream);
  if (LaunchFindDifference(room.memory[0], room.memory[1], p.m, p.n * words, p.out_stride * words,
                           static_cast<int32_t*>(room.memory[2]), runner.stream) != cudaSuccess) {
    return false;
  }
  (void)cudaMemcpyAsync(&differs, room.memory[2], sizeof(differs), cudaMemcpyDeviceToHost,
                        runner.stream);
  return cudaStreamSynchronize(runner.stream) == cudaSuccess && differs == 0;
}

// Returns the fastest algorithm that gives the bits of the first.
cublasLtMatmulAlgo_t Tune(const Runner& runner,
                          const std::vector<cublasLtMatmulAlgo_t>& algorithms) {
  const CudaMatMulParams& p = runner.p;
  TuningRoom room;
  const size_t bytes = static_cast<size_t>(p.m * p.out_stride) * (p.float_out ? 4 : 2);
  if (algorithms.size() < 2 || !room.Allocate(bytes)) return algorithms[0];
  if (!runner.Run(algorithms[0], room.memory[0]).ok()) return algorithms[0];
  cublasLtMatmulAlgo_t best = algorithms[0];
  float best_ms = TimeOf(runner, algorithms[0], room);
  for (size_t i = 1; i < algorithms.size(); ++i) {
    (void)cudaMemsetAsync(room.memory[1], 0xff, bytes, runner.stream);  // NaN
    const float ms = TimeOf(runner, algorithms[i], room);
    if (ms > 0.0f && ms < best_ms && GivesTheSameBits(runner, room)) {
      best = algorithms[i];
      best_ms = ms;
    }
  }
  return best;
}

}  // namespace

absl::StatusOr<CudaMatMul> CudaMatMul::Create(void* workspace, size_t workspace_bytes) {
  cublasLtHandle_t handle = nullptr;
  EK_RETURN_IF_ERROR(ToStatus(cublasLtCreate(&handle), "cublasLtCreate"));
  return CudaMatMul(handle, workspace, workspace_bytes);
}

CudaMatMul::CudaMatMul(CudaMatMul&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)),
      workspace_(other.workspace_),
      workspace_bytes_(other.workspace_bytes_),
      choices_(std::move(other.choices_)) {}

CudaMatMul::~CudaMatMul() {
  if (handle_ != nullptr) (void)cublasLtDestroy(handle_);
}

absl::Status CudaMatMul::Run(const CudaMatMulParams& p, cudaStream_t stream) {
  if (p.m < 0 || p.n < 0 || p.k < 0 || (p.bias != nullptr && p.float_out)) {
    return absl::InvalidArgumentError(absl::StrCat("product of ", p.m, ", ", p.n, ", ", p.k));
  }
  if (p.m == 0 || p.n == 0) return absl::OkStatus();
  if (p.k == 0) {
    // cuBLASLt takes no empty sums. What is left is a copy or a clear.
    const size_t element = p.float_out ? 4 : 2;
    const size_t pitch = static_cast<size_t>(p.out_stride) * element;
    const size_t width = static_cast<size_t>(p.n) * element;
    cudaError_t error = cudaSuccess;
    if (p.beta == 0.0f) {
      error = cudaMemset2DAsync(p.out, pitch, 0, width, static_cast<size_t>(p.m), stream);
    } else if (p.beta != 1.0f) {
      return absl::InvalidArgumentError("an empty sum takes a beta of 0 or 1");
    } else if (p.c != nullptr && p.c != p.out) {
      error = cudaMemcpy2DAsync(p.out, pitch, p.c, static_cast<size_t>(p.c_stride) * element, width,
                                static_cast<size_t>(p.m), cudaMemcpyDeviceToDevice, stream);
    }
    if (error == cudaSuccess) return absl::OkStatus();
    return absl::InternalError(cudaGetErrorString(error));
  }
  EK_ASSIGN_OR_RETURN(const Descriptors d, Describe(p));
  const void* c = p.c != nullptr ? p.c : p.out;
  int64_t flags = (p.transpose_a == Transpose::kYes ? 1 : 0) |
                  (p.transpose_b == Transpose::kYes ? 2 : 0) | (p.float_out ? 4 : 0) |
                  (p.bias != nullptr ? 8 : 0) | (p.beta != 0.0f ? 16 : 0) | (c != p.out ? 32 : 0) |
                  (p.short_sums ? 64 : 0) | static_cast<int64_t>(p.a_type) << 7 |
                  static_cast<int64_t>(p.b_type) << 10;
  for (const void* q : {p.a, p.b, c, static_cast<const void*>(p.out)}) {
    flags = flags * 16 + AlignmentBits(q);
  }
  const Key key = {p.m,          p.n,        p.k,
                   p.a_stride,   p.b_stride, p.c != nullptr ? p.c_stride : p.out_stride,
                   p.out_stride, flags};
  constexpr int kCandidates = 8;
  const Runner runner{handle_, p, d, workspace_, workspace_bytes_, stream};
  auto known = choices_.find(key);
  if (known == choices_.end()) {
    EK_ASSIGN_OR_RETURN(const std::vector<cublasLtMatmulAlgo_t> first,
                        FindAlgorithms(handle_, p, d, workspace_bytes_, 1));
    known = choices_.emplace(key, Choice{first[0]}).first;
  }
  if (++known->second.uses == kUsesBeforeTuning) {
    EK_ASSIGN_OR_RETURN(const std::vector<cublasLtMatmulAlgo_t> algorithms,
                        FindAlgorithms(handle_, p, d, workspace_bytes_, kCandidates));
    known->second.algorithm = Tune(runner, algorithms);
  }
  return runner.Run(known->second.algorithm, p.out);
}

}  // namespace evenkeel
