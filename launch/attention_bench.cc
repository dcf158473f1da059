#include "launch/attention_bench.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_format.h"
#include "attention/softmax_attention.h"
#include "launch/noise.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

// Bytes that one query row and one key row take in all tensors of a launch.
struct RowBytes {
  double query = 0;
  double key = 0;
};

RowBytes RowBytesOf(const OpContext& context, const AttentionBenchOptions& options) {
  const auto element = static_cast<double>(SizeOf(context.dtype));
  const auto wide = static_cast<double>(SizeOf(context.wide_dtype()));
  const auto width = static_cast<double>(options.heads * options.head_size);
  const auto kv_width = static_cast<double>(options.kv_heads * options.head_size);
  // q, out, dout, dq, and dq again in the wide dtype, in which the backward pass adds it up; lse
  // and the like. k and v, dk and dv.
  return {width * (4 * element + wide) + static_cast<double>(options.heads) * 3 * wide,
          kv_width * 2 * (element + wide)};
}

// The tensors of a launch, in the context's arena.
struct Launch {
  std::vector<AttentionTask> tasks;
  TaskPlan plan;
  double scale = 1;
  TensorView q, k, v, out, lse, dout, dq, dk, dv;

  Launch(const OpContext& context, const AttentionBenchOptions& options,
         const AttentionBatch& batch, int64_t q_len, int64_t kv_len)
      : scale(1 / std::sqrt(static_cast<double>(options.head_size))) {
    for (int64_t i = 0; i < batch.tasks; ++i) {
      tasks.push_back({i * q_len, q_len, i % batch.key_sets * kv_len, kv_len});
    }
    plan = PlanTasks(context, tasks, {options.head_size, options.heads / options.kv_heads},
                     /*backward=*/true);
    const auto make = [&](DType dtype, int64_t rows, int64_t heads) {
      const TensorView x = context.arena.Allocate(dtype, {rows, heads * options.head_size},
                                                  MemoryPurpose::kActivations);
      FillWithNoise(context, x);
      return x.SplitHeads(heads);
    };
    const int64_t q_rows = batch.tasks * q_len, kv_rows = batch.key_sets * kv_len;
    for (TensorView* x : {&q, &out, &dout, &dq}) *x = make(context.dtype, q_rows, options.heads);
    for (TensorView* x : {&k, &v}) *x = make(context.dtype, kv_rows, options.kv_heads);
    for (TensorView* x : {&dk, &dv}) *x = make(context.wide_dtype(), kv_rows, options.kv_heads);
    lse = context.arena.Allocate(context.wide_dtype(), {q_rows, options.heads},
                                 MemoryPurpose::kActivations);
  }

  void Forward(const OpContext& context) const {
    SoftmaxAttentionForward(context, plan, scale, q, k, v, out, lse);
  }
  // Key gradients in the wide dtype: a server's are, and they travel so.
  void Backward(const OpContext& context) const {
    SoftmaxAttentionBackward(context, plan, scale, q, k, v, out, lse, dout, dq, dk, dv,
                             KeyGradients::kWriteWide);
  }
};

absl::StatusOr<AttentionCostPoint> MeasurePoint(const RankRuntime& rank,
                                                const AttentionBenchOptions& options, int64_t q_len,
                                                int64_t kv_len) {
  EK_ASSIGN_OR_RETURN(const AttentionBatch batch, BatchFor(rank, options, q_len, kv_len));
  const OpContext& context = rank.context;
  const ArenaScope scope(context.arena);
  const Launch launch(context, options, batch, q_len, kv_len);
  const auto seconds_per_pair = [&](const std::function<void()>& body) -> absl::StatusOr<double> {
    EK_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(context, options.timing, body));
    return seconds / (static_cast<double>(batch.tasks) * CausalPairs(q_len, kv_len));
  };
  AttentionCostPoint point{q_len, kv_len, batch.tasks};
  // In this order: the backward pass needs what the forward pass wrote.
  EK_ASSIGN_OR_RETURN(point.forward_s_per_pair, seconds_per_pair([&] { launch.Forward(context); }));
  EK_ASSIGN_OR_RETURN(point.backward_s_per_pair,
                      seconds_per_pair([&] { launch.Backward(context); }));
  EK_ASSIGN_OR_RETURN(point.both_s_per_pair, seconds_per_pair([&] {
                        launch.Forward(context);
                        launch.Backward(context);
                      }));
  return point;
}

}  // namespace

absl::StatusOr<AttentionBatch> BatchFor(const RankRuntime& rank,
                                        const AttentionBenchOptions& options, int64_t q_len,
                                        int64_t kv_len) {
  const bool on_gpu = rank.context.cuda != nullptr;
  // Milliseconds of work, and several times the tiles of 128 queries that a GPU computes at once.
  const double flops = on_gpu ? 1e12 : 1e9 * rank.context.pool.num_threads();
  const double tiles = on_gpu ? 1024 : 4 * rank.context.pool.num_threads();
  const auto q = static_cast<double>(q_len), kv = static_cast<double>(kv_len);
  const double tiles_of_task = std::ceil(q / 128) * static_cast<double>(options.heads);
  const double flops_of_task =
      4 * CausalPairs(q_len, kv_len) * static_cast<double>(options.heads * options.head_size);
  const double wanted = std::ceil(std::max(flops / flops_of_task, tiles / tiles_of_task));

  // A quarter of the memory for queries, as much for keys; the rest stays for others, and for what
  // the plan and the backward pass need.
  const double memory = static_cast<double>(rank.memory.bytes) / rank.memory.sharers;
  const double budget = std::min(memory / 4, on_gpu ? 16e9 : 0.5e9);
  const RowBytes bytes = RowBytesOf(rank.context, options);
  const double needed = q * bytes.query + kv * bytes.key;
  if (needed > memory / 2) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrFormat(
            "%d queries on %d keys with %d heads of %d take %.1f GB, and half of the %s's memory "
            "is %.1f GB: lower --max-kv, or measure fewer --heads: a pair's time grows with them",
            q_len, kv_len, options.heads, options.head_size, needed * 1e-9, rank.memory.owner,
            memory / 2 * 1e-9)),
        ExitCode::kOutOfMemory);
  }
  const auto at_least_one = [](double count) {
    return std::max<int64_t>(1, static_cast<int64_t>(count));
  };
  AttentionBatch batch;
  batch.tasks = at_least_one(std::min(wanted, budget / (q * bytes.query)));
  batch.key_sets = std::min(batch.tasks, at_least_one(budget / (kv * bytes.key)));
  return batch;
}

double AttentionFlops(const AttentionBenchOptions& options, const AttentionCostPoint& point,
                      bool forward, bool backward) {
  const double products = (forward ? 4 : 0) + (backward ? 10 : 0);
  return products * static_cast<double>(options.heads * options.head_size * point.tasks) *
         CausalPairs(point.q_len, point.kv_len);
}

absl::StatusOr<std::vector<AttentionCostPoint>> MeasureAttention(
    const RankRuntime& rank, const AttentionBenchOptions& options,
    const std::function<void(const AttentionCostPoint&)>& tell) {
  const std::set<int64_t> kv_lens(options.kv_lens.begin(), options.kv_lens.end());
  std::set<int64_t> q_lens(options.q_lens.begin(), options.q_lens.end());
  q_lens.insert(kv_lens.begin(), kv_lens.end());
  std::vector<AttentionCostPoint> points;
  for (const int64_t q_len : q_lens) {
    for (auto kv_len = kv_lens.lower_bound(q_len); kv_len != kv_lens.end(); ++kv_len) {
      EK_ASSIGN_OR_RETURN(const AttentionCostPoint point,
                          MeasurePoint(rank, options, q_len, *kv_len));
      points.push_back(point);
      tell(point);
    }
  }
  return points;
}

}  // namespace evenkeel
