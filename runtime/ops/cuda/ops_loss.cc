#include <type_traits>
#include <vector>

#include "runtime/ops/cuda/adamw_cuda.h"
#include "runtime/ops/cuda/cross_entropy_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/embedding_cuda.h"
#include "runtime/ops/cuda/sum_cuda.h"

namespace evenkeel::cuda {

void EmbeddingForward(const OpContext& context, ConstTensorView table, Indices tokens, double scale,
                      TensorView y) {
  EK_CHECK(table.is_dense() && y.dim(0) == tokens.size() && y.dim(1) == table.dim(1))
      << tokens.size() << " of " << table.shape.ToString() << " -> " << y.shape.ToString();
  const ArenaScope scope(context.arena);
  EmbeddingForwardParams params;
  params.tokens = tokens.size();
  params.columns = table.dim(1);
  params.ids = cuda::Mirror(context, tokens).device;
  params.table = table.data;
  params.scale = static_cast<float>(scale);
  params.y = y.data;
  params.y_stride = y.stride(0);
  Note(context, LaunchEmbeddingForward(params, StreamOf(context)), "EmbeddingForward");
}

void EmbeddingBackward(const OpContext& context, Indices tokens, double scale, ConstTensorView dy,
                       TensorView dtable) {
  EK_CHECK(dtable.is_dense() && dy.dim(0) == tokens.size() && dy.dim(1) == dtable.dim(1))
      << tokens.size() << " of " << dy.shape.ToString() << " -> " << dtable.shape.ToString();
  if (tokens.size() == 0) return;
  const ArenaScope scope(context.arena);
  const EmbeddingPlan plan = PlanEmbeddingBackward(tokens.host.data(), tokens.size());
  void* device_plan = Scratch(context, plan.bytes.size());
  context.cuda->device->Upload(plan.bytes.data(), device_plan,
                               static_cast<int64_t>(plan.bytes.size()));
  EmbeddingBackwardParams params;
  params.plan = ViewOf(plan, device_plan);
  params.columns = dy.dim(1);
  params.dy = dy.data;
  params.dy_stride = dy.stride(0);
  params.scale = static_cast<float>(scale);
  params.dtable = dtable.as<float>();
  params.workspace = Scratch(context, EmbeddingBackwardWorkspaceBytes(params.plan, params.columns));
  Note(context, LaunchEmbeddingBackward(params, StreamOf(context)), "EmbeddingBackward");
}

namespace {

void CrossEntropy(const OpContext& context, const ConstTensorView& logits, void* data,
                  const Indices& targets, double scale, bool losses_only,
                  const TensorView& losses) {
  EK_CHECK(logits.dim(0) == targets.size() && losses.num_elements() == targets.size())
      << logits.shape.ToString() << " " << targets.size() << " " << losses.shape.ToString();
  const ArenaScope scope(context.arena);
  CrossEntropyParams params;
  params.tokens = targets.size();
  params.vocab = logits.dim(1);
  params.float_logits = logits.dtype == DType::kF32;
  params.logits = data;
  params.stride = logits.stride(0);
  params.targets = cuda::Mirror(context, targets).device;
  params.scale = static_cast<float>(scale);
  params.losses = losses.as<float>();
  params.losses_only = losses_only;
  Note(context, LaunchCrossEntropy(params, StreamOf(context)), "CrossEntropy");
}

}  // namespace

void CrossEntropyForwardBackward(const OpContext& context, Indices targets, double scale,
                                 TensorView logits, TensorView losses) {
  CrossEntropy(context, logits, logits.data, targets, scale, /*losses_only=*/false, losses);
}

void CrossEntropyForward(const OpContext& context, ConstTensorView logits, Indices targets,
                         TensorView losses) {
  // The launcher takes what it would overwrite; with losses_only it only reads.
  CrossEntropy(context, logits, const_cast<void*>(logits.data), targets, 1, /*losses_only=*/true,
               losses);
}

void ClippedAdamW(const OpContext& context, const AdamWConfig& config, const AdamWStepParams& step,
                  absl::Span<const AdamWRange> ranges, ConstTensorView sum_of_squares,
                  const AdamWTensors& tensors) {
  const ArenaScope scope(context.arena);
  static_assert(std::is_trivially_copyable_v<AdamWRange>);
  const size_t range_bytes = ranges.size() * sizeof(AdamWRange);
  void* device_ranges = Scratch(context, range_bytes);
  context.cuda->device->Upload(ranges.data(), device_ranges, static_cast<int64_t>(range_bytes));
  double* norm = context.arena.Allocate(DType::kF64, {1}, MemoryPurpose::kWorkspace).as<double>();
  float* factor = context.arena.Allocate(DType::kF32, {1}, MemoryPurpose::kWorkspace).as<float>();

  ClipFactorParams clip;
  clip.sum_of_squares = sum_of_squares.as<double>();
  clip.max_norm = step.clip_norm;
  clip.norm = norm;
  clip.factor = factor;
  Note(context, LaunchClipFactor(clip, StreamOf(context)), "ClipFactor");

  AdamWParams params;
  params.n = tensors.weight.num_elements();
  params.weight = tensors.weight.as<float>();
  params.exp_avg = tensors.exp_avg.as<float>();
  params.exp_avg_sq = tensors.exp_avg_sq.as<float>();
  params.gradient = tensors.gradient.as<float>();
  params.copy = tensors.copy.data;
  params.clear_gradient = true;
  params.ranges = static_cast<const AdamWRange*>(device_ranges);
  params.num_ranges = static_cast<int64_t>(ranges.size());
  params.gradient_scale = factor;
  params.lr = step.lr;
  params.beta1 = config.beta1;
  params.beta2 = config.beta2;
  params.eps = config.eps;
  params.step = step.step;
  Note(context, LaunchAdamW(params, StreamOf(context)), "AdamW");
}

}  // namespace evenkeel::cuda
