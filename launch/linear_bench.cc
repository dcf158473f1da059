#include "launch/linear_bench.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_format.h"
#include "attention/lightning_attention.h"
#include "launch/noise.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

// q, k, v, dout, out, dq, dk, dv.
constexpr int64_t kTensors = 8;

absl::StatusOr<LinearPoint> MeasureLength(const RankRuntime& rank,
                                          const LinearBenchOptions& options, int64_t length) {
  const OpContext& context = rank.context;
  const int64_t width = options.heads * options.head_size;
  // What a GPU's memory bandwidth takes about a millisecond for.
  const int64_t wanted = context.cuda == nullptr ? 4096 : 65536;
  LinearPoint point{length, std::max<int64_t>(1, wanted / length)};
  const double memory = static_cast<double>(rank.memory.bytes) / rank.memory.sharers;
  const double needed = static_cast<double>(point.tokens() * width * SizeOf(context.dtype)) *
                        static_cast<double>(kTensors);
  if (needed > memory / 2) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrFormat(
            "%d tokens with %d heads of %d take %.1f GB, and half of the %s's memory is %.1f GB: "
            "lower --max-length, or measure fewer --heads",
            point.tokens(), options.heads, options.head_size, needed * 1e-9, rank.memory.owner,
            memory / 2 * 1e-9)),
        ExitCode::kOutOfMemory);
  }
  const ArenaScope scope(context.arena);
  std::vector<int64_t> cu_seqlens;
  for (int64_t i = 0; i <= point.documents; ++i) cu_seqlens.push_back(i * length);
  const SequencePlan plan = PlanSequences(context, cu_seqlens, options.heads, options.head_size);
  const std::vector<double> slopes = TransNormerSlopes(options.heads, /*layer=*/4, 24);
  TensorView tensors[kTensors];
  for (TensorView& x : tensors) {
    x = context.arena.Allocate(context.dtype, {point.tokens(), width}, MemoryPurpose::kActivations);
    FillWithNoise(context, x);
    x = x.SplitHeads(options.heads);
  }
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

}  // namespace evenkeel
