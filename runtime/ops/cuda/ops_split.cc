// Ops of ranks that share rows: slices of the vocabulary.
#include "runtime/ops/cuda/cross_entropy_slices_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"

namespace evenkeel::cuda {
namespace {

void CheckBf16(const ConstTensorView& view) {
  EK_CHECK(view.rank() == 2 && view.dtype == DType::kBF16) << view.shape.ToString();
}

}  // namespace

void CrossEntropySliceStatistics(const OpContext& context, ConstTensorView logits, Indices targets,
                                 int64_t vocab_begin, TensorView statistics) {
  CheckBf16(logits);
  EK_CHECK(logits.dim(0) == targets.size() && statistics.is_dense() &&
           statistics.num_elements() == 3 * targets.size())
      << logits.shape.ToString() << " " << targets.size() << " " << statistics.shape.ToString();
  const ArenaScope scope(context.arena);
  CrossEntropySliceStatisticsParams params;
  params.tokens = targets.size();
  params.vocab = logits.dim(1);
  params.vocab_begin = vocab_begin;
  params.logits = logits.data;
  params.stride = logits.stride(0);
  params.targets = cuda::Mirror(context, targets).device;
  params.statistics = statistics.as<float>();
  Note(context, LaunchCrossEntropySliceStatistics(params, StreamOf(context)),
       "CrossEntropySliceStatistics");
}

void CrossEntropySliceGradient(const OpContext& context, ConstTensorView all, Indices targets,
                               int64_t vocab_begin, double scale, TensorView logits,
                               TensorView losses) {
  EK_CHECK(all.rank() == 3 && all.is_dense() && all.dim(1) == targets.size() && all.dim(2) == 3 &&
           losses.is_dense() && losses.num_elements() == targets.size())
      << all.shape.ToString() << " " << targets.size() << " " << losses.shape.ToString();
  const ArenaScope scope(context.arena);
  CrossEntropySliceGradientParams params;
  params.tokens = targets.size();
  params.slices = all.dim(0);
  params.vocab_begin = vocab_begin;
  params.all = all.as<float>();
  params.targets = cuda::Mirror(context, targets).device;
  params.scale = static_cast<float>(scale);
  params.losses = losses.as<float>();
  if (!logits.empty()) {
    CheckBf16(logits);
    EK_CHECK(logits.dim(0) == targets.size()) << logits.shape.ToString();
    params.vocab = logits.dim(1);
    params.logits = logits.data;
    params.stride = logits.stride(0);
  }
  Note(context, LaunchCrossEntropySliceGradient(params, StreamOf(context)),
       "CrossEntropySliceGradient");
}

}  // namespace evenkeel::cuda
