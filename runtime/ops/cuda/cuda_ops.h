// The ops of runtime/ops on a GPU, by the same names and with the same meaning: each takes its
// tensors apart for a launcher of this folder. Free of CUDA's headers, so that the ops' own files
// can pass calls on in every build. Private to the folders that have ops.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/base/with_cuda.h"
#include "runtime/ops/activation_kind.h"
#include "runtime/ops/adamw.h"
#include "runtime/ops/copy_rows.h"
#include "runtime/ops/fp8.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"
#include "runtime/ops/op_timer.h"
#include "runtime/ops/step_trace.h"
#include "runtime/ops/sum_rows.h"

// First line of an op that has a twin on the GPU: passes the call on if the context is a GPU's.
// Builds without CUDA compile the call and drop it.
#define EK_PASS_ON_TO_CUDA(context, call)             \
  if constexpr (kWithCuda) {                          \
    if ((context).cuda != nullptr) return cuda::call; \
  }

// The same, as a span of the timeline under the op's name.
#define EK_TRACE_ON_CUDA(context, name, ...)      \
  if constexpr (kWithCuda) {                      \
    if ((context).cuda != nullptr) {              \
      const TraceScope ek_scope_(context, #name); \
      return cuda::name(context, __VA_ARGS__);    \
    }                                             \
  }

namespace evenkeel::cuda {

std::unique_ptr<StepTrace> MakeStepTrace(const OpContext& context);
std::unique_ptr<OpTimer> MakeOpTimer(const OpContext& context);
void PushRange(const char* name);
void PopRange();

int NumGpus();
absl::StatusOr<std::shared_ptr<CudaOps>> OpenGpu(int ordinal);
CudaDevice& DeviceOf(CudaOps& ops);
GpuFacts FactsOf(CudaOps& ops);
std::vector<GpuFacts> ListGpus();
std::string CudaText();
absl::Status WaitForOps(const OpContext& context);
absl::Status CopyToHost(const OpContext& context, ConstTensorView x, TensorView host);
absl::Status CopyFromHost(const OpContext& context, ConstTensorView host, TensorView x);

template <typename T>
MirroredArray<T> Mirror(const OpContext& context, MirroredArray<T> array);

void SetZero(const OpContext& context, TensorView x);
void FillNormal(const OpContext& context, uint64_t seed, uint64_t stream, int64_t first,
                double scale, TensorView y);
void Copy(const OpContext& context, ConstTensorView x, TensorView y);
void CopyRowRanges(const OpContext& context, const RowRanges& ranges, ConstTensorView x,
                   TensorView y);
void SumRowRanges(const OpContext& context, const RowSegments& segments, const Positions& terms,
                  ConstTensorView x, TensorView y);
void Add(const OpContext& context, ConstTensorView a, ConstTensorView b, TensorView y);
void AddWide(const OpContext& context, ConstTensorView x, TensorView sum);
void BiasBackward(const OpContext& context, ConstTensorView dy, TensorView dbias);
void AddSum(const OpContext& context, ConstTensorView x, TensorView sum);
void AddSquares(const OpContext& context, ConstTensorView x, TensorView sum);

void MatMul(const OpContext& context, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, double beta, TensorView c);
void LinearForward(const OpContext& context, ConstTensorView x, ConstTensorView w,
                   ConstTensorView bias, ConstTensorView residual, TensorView y);

void CastToFp8(const OpContext& context, ConstTensorView x, const Fp8Operand& to);
void GatedUnitForwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                         const Fp8Operand& h);
void GatedUnitBackwardFp8(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                          ConstTensorView dh, const Fp8Operand& dpair, const Fp8Operand& h);
void LinearForwardFp8(const OpContext& context, const Fp8Operand& x, const Fp8Operand& w,
                      ConstTensorView bias, ConstTensorView residual, TensorView y);
void LinearBackwardInputFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& w,
                            TensorView dx);
void LinearBackwardWeightFp8(const OpContext& context, const Fp8Operand& dy, const Fp8Operand& x,
                             TensorView dw);

void RmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                    TensorView y);
void RmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gain, double eps,
                     ConstTensorView dy, TensorView dx, bool accumulate, TensorView dgain);
void GatedRmsNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                         double eps, TensorView y);
void GatedRmsNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                          double eps, ConstTensorView dy, TensorView dx, TensorView dgate);

void RowSquares(const OpContext& context, ConstTensorView x, TensorView sums);
void SplitNormForward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                      ConstTensorView sums, int64_t columns, double eps, TensorView y);
void SplitNormDots(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                   ConstTensorView sums, int64_t columns, double eps, ConstTensorView dy,
                   TensorView dots);
void SplitNormBackward(const OpContext& context, ConstTensorView x, ConstTensorView gate,
                       ConstTensorView sums, ConstTensorView dots, int64_t columns, double eps,
                       ConstTensorView dy, TensorView dx, TensorView dgate);

void ActivationForward(const OpContext& context, Activation activation, ConstTensorView x,
                       TensorView y);
void ActivationBackward(const OpContext& context, Activation activation, ConstTensorView x,
                        ConstTensorView dy, TensorView dx);
void GatedUnitForward(const OpContext& context, GatedUnit unit, ConstTensorView pair, TensorView h);
void GatedUnitBackward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                       ConstTensorView dh, TensorView dpair, TensorView h);

void RopeTable(const OpContext& context, Positions positions,
               absl::Span<const double> inverse_frequencies, double attention_factor,
               TensorView cos, TensorView sin);
void ApplyRope(const OpContext& context, ConstTensorView cos, ConstTensorView sin, bool inverse,
               TensorView x);
void ActivatedLrpeForward(const OpContext& context, Activation activation, ConstTensorView x,
                          ConstTensorView theta, Positions positions, TensorView y);
void ActivatedLrpeBackward(const OpContext& context, Activation activation, ConstTensorView x,
                           ConstTensorView theta, Positions positions, ConstTensorView dy,
                           TensorView dx, TensorView dtheta);
void UrpeForward(const OpContext& context, ConstTensorView x, ConstTensorView theta,
                 ConstTensorView reflection, Positions positions, TensorView y);
void UrpeBackward(const OpContext& context, ConstTensorView y, ConstTensorView theta,
                  ConstTensorView reflection, Positions positions, ConstTensorView dy,
                  TensorView dx, TensorView dtheta);

void EmbeddingForward(const OpContext& context, ConstTensorView table, Indices tokens, double scale,
                      TensorView y);
void EmbeddingBackward(const OpContext& context, Indices tokens, double scale, ConstTensorView dy,
                       TensorView dtable);
void CrossEntropyForwardBackward(const OpContext& context, Indices targets, double scale,
                                 TensorView logits, TensorView losses);
void CrossEntropyForward(const OpContext& context, ConstTensorView logits, Indices targets,
                         TensorView losses);
void CrossEntropySliceStatistics(const OpContext& context, ConstTensorView logits, Indices targets,
                                 int64_t vocab_begin, TensorView statistics);
void CrossEntropySliceGradient(const OpContext& context, ConstTensorView all, Indices targets,
                               int64_t vocab_begin, double scale, TensorView logits,
                               TensorView losses);

void ClippedAdamW(const OpContext& context, const AdamWConfig& config, const AdamWStepParams& step,
                  absl::Span<const AdamWRange> ranges, ConstTensorView sum_of_squares,
                  const AdamWTensors& tensors);

}  // namespace evenkeel::cuda
