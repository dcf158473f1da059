#include "launch/linear_bench.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "attention/lightning_attention.h"
#include "launch/noise.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

// q, k, v, dout, out, dq, dk, dv.
constexpr int64_t kTensors = 8;

// The layer whose decay is measured, of so many.
constexpr int64_t kLayer = 4, kLayers = 24;

double DeviceMemory(const RankRuntime& rank) {
  return static_cast<double>(rank.memory.bytes) / rank.memory.sharers;
}

// `what` takes `needed` bytes; `advice` says how to need less.
absl::Status DoesNotFit(const RankRuntime& rank, const LinearBenchOptions& options,
                        const std::string& what, double needed, const char* advice) {
  return WithExitCode(
      absl::ResourceExhaustedError(absl::StrFormat(
          "%s with %d heads of %d take %.1f GB, and half of the %s's memory is %.1f GB: %s, or "
          "measure fewer --heads",
          what, options.heads, options.head_size, needed * 1e-9, rank.memory.owner,
          DeviceMemory(rank) / 2 * 1e-9, advice)),
      ExitCode::kOutOfMemory);
}

TensorView NoisyHeads(const OpContext& context, const LinearBenchOptions& options, int64_t tokens) {
  const TensorView x = context.arena.Allocate(
      context.dtype, {tokens, options.heads * options.head_size}, MemoryPurpose::kActivations);
  FillWithNoise(context, x);
  return x.SplitHeads(options.heads);
}

absl::StatusOr<LinearPoint> MeasureLength(const RankRuntime& rank,
                                          const LinearBenchOptions& options, int64_t length) {
  const OpContext& context = rank.context;
  const int64_t width = options.heads * options.head_size;
  // What a GPU's memory bandwidth takes about a millisecond for.
  const int64_t wanted = context.cuda == nullptr ? 4096 : 65536;
  LinearPoint point{length, std::max<int64_t>(1, wanted / length)};
  const double needed = static_cast<double>(point.tokens() * width * SizeOf(context.dtype)) *
                        static_cast<double>(kTensors);
  if (needed > DeviceMemory(rank) / 2) {
    return DoesNotFit(rank, options, absl::StrCat(point.tokens(), " tokens"), needed,
                      "lower --max-length");
  }
  const ArenaScope scope(context.arena);
  std::vector<int64_t> cu_seqlens;
  for (int64_t i = 0; i <= point.documents; ++i) cu_seqlens.push_back(i * length);
  const SequencePlan plan = PlanSequences(context, cu_seqlens, options.heads, options.head_size);
  const std::vector<double> slopes = TransNormerSlopes(options.heads, kLayer, kLayers);
  TensorView tensors[kTensors];
  for (TensorView& x : tensors) x = NoisyHeads(context, options, point.tokens());
  const auto& [q, k, v, dout, out, dq, dk, dv] = tensors;
  const auto forward = [&, q = q, k = k, v = v, out = out] {
    LightningAttentionForward(context, plan, slopes, q, k, v, {}, out, {});
  };
  const auto backward = [&, q = q, k = k, v = v, dout = dout, dq = dq, dk = dk, dv = dv] {
    LightningAttentionBackward(context, plan, slopes, q, k, v, {}, dout, {}, dq, dk, dv, {});
  };
  EK_ASSIGN_OR_RETURN(point.forward_s, MedianSeconds(context, options.timing, forward));
  EK_ASSIGN_OR_RETURN(point.backward_s, MedianSeconds(context, options.timing, backward));
  EK_ASSIGN_OR_RETURN(point.both_s, MedianSeconds(context, options.timing, [&] {
                        forward();
                        backward();
                      }));
  return point;
}

absl::StatusOr<DecodePoint> MeasureStep(const RankRuntime& rank, const LinearBenchOptions& options,
                                        int64_t sequences) {
  const OpContext& context = rank.context;
  const ArenaScope scope(context.arena);
  std::vector<int64_t> cu_seqlens(static_cast<size_t>(sequences) + 1);
  std::iota(cu_seqlens.begin(), cu_seqlens.end(), 0);
  const SequencePlan plan = PlanSequences(context, cu_seqlens, options.heads, options.head_size);
  const std::vector<double> slopes = TransNormerSlopes(options.heads, kLayer, kLayers);
  const TensorView q = NoisyHeads(context, options, sequences);
  const TensorView k = NoisyHeads(context, options, sequences);
  const TensorView v = NoisyHeads(context, options, sequences);
  const TensorView out = NoisyHeads(context, options, sequences);
  const TensorView state = context.arena.AllocateZero(
      context.wide_dtype(), {sequences, options.heads, options.head_size, options.head_size},
      MemoryPurpose::kCache);
  DecodePoint point{sequences};
  EK_ASSIGN_OR_RETURN(point.step_s, MedianSeconds(context, options.timing, [&] {
                        LightningAttentionForward(context, plan, slopes, q, k, v, state, out,
                                                  state);
                      }));
  return point;
}

}  // namespace

double LinearFlops(const LinearBenchOptions& options, const LinearPoint& point, bool forward,
                   bool backward) {
  const double products = (forward ? 4 : 0) + (backward ? 12 : 0);
  return products * static_cast<double>(point.tokens() * options.heads) *
         static_cast<double>(options.head_size * options.head_size);
}

absl::StatusOr<std::vector<LinearPoint>> MeasureLinear(
    const RankRuntime& rank, const LinearBenchOptions& options,
    const std::function<void(const LinearPoint&)>& tell) {
  std::vector<LinearPoint> points;
  for (const int64_t length : std::set<int64_t>(options.lengths.begin(), options.lengths.end())) {
    EK_ASSIGN_OR_RETURN(const LinearPoint point, MeasureLength(rank, options, length));
    points.push_back(point);
    tell(point);
  }
  return points;
}

double DecodeStateBytes(const OpContext& context, const LinearBenchOptions& options,
                        int64_t sequences) {
  return static_cast<double>(sequences) * static_cast<double>(options.heads) *
         static_cast<double>(options.head_size * options.head_size * SizeOf(context.wide_dtype()));
}

absl::Status CheckDecodeFits(const RankRuntime& rank, const LinearBenchOptions& options,
                             int64_t sequences) {
  const double needed = DecodeStateBytes(rank.context, options, sequences);
  if (needed <= DeviceMemory(rank) / 2) return absl::OkStatus();
  return DoesNotFit(rank, options, absl::StrCat("the states of ", sequences, " sequences"), needed,
                    "lower --sequences");
}

absl::StatusOr<std::vector<DecodePoint>> MeasureDecode(
    const RankRuntime& rank, const LinearBenchOptions& options,
    const std::function<void(const DecodePoint&)>& tell) {
  std::vector<DecodePoint> points;
  for (const int64_t sequences :
       std::set<int64_t>(options.sequences.begin(), options.sequences.end())) {
    EK_ASSIGN_OR_RETURN(const DecodePoint point, MeasureStep(rank, options, sequences));
    points.push_back(point);
    tell(point);
  }
  return points;
}

}  // namespace evenkeel
