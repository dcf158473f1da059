#include "launch/attention_planner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "launch/attention_cost_file.h"
#include "parallel/batch_layout.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Measured times scatter by so much from step to step without meaning anything.
constexpr double kNoise = 0.05;
// A server that seems to stand still is given something all the same, to be measured again.
constexpr double kLeastSpeed = 1.0 / 64;
// Where shards are too large for so little, it gets nothing, and nothing is measured: its speed
// then grows by this a step, until something falls to it.
constexpr double kRetry = 1.25;

}  // namespace

ReplicaCuSeqlens BatchesOfStep(SampleOrder& order, int64_t step, const BatchSizes& sizes,
                               int replicas) {
  ReplicaCuSeqlens cu_seqlens;
  for (int replica = 0; replica < replicas; ++replica) {
    cu_seqlens.emplace_back();
    for (const MicroBatch& micro :
         MicroBatchesOfRank(step, sizes.global_batch, sizes.micro_batch, replica, replicas)) {
      std::vector<int64_t> cu = {0};
      for (int64_t i = 0; i < micro.num_samples; ++i) {
        for (const Piece& piece : order.Sample(micro.first_sample + i)) {
          cu.push_back(cu.back() + piece.length);
        }
      }
      cu_seqlens.back().push_back(std::move(cu));
    }
  }
  return cu_seqlens;
}

absl::StatusOr<PoolPlanOptions> PlanningOf(const RunConfig& config, const ParallelPlan& plan,
                                           DType dtype) {
  PoolPlanOptions options = plan.pool_options(dtype);
  if (config.parallel.attention_cost.empty()) return options;
  EK_ASSIGN_OR_RETURN(const AttentionCostFile file,
                      ReadAttentionCostFile(config.parallel.attention_cost));
  const AttentionHeads heads = plan.pool_heads();
  EK_ASSIGN_OR_RETURN(const AttentionCosts costs, CostsOf(file, heads.num_heads, heads.value_size));
  options.forward = costs.forward;
  options.backward = costs.backward;
  options.costs_are_times = true;
  return options;
}

AttentionPlanner::AttentionPlanner(const PoolShape& shape, const PoolPlanOptions& options,
                                   SampleOrder order, const BatchSizes& batches, int rank,
                                   std::optional<EvaluationSamples> samples)
    : shape_(shape),
      options_(options),
      order_(std::move(order)),
      batches_(batches),
      samples_(std::move(samples)),
      rank_(rank) {}

PoolStep AttentionPlanner::TakeFrom(Ahead& ahead, int64_t number, bool has_next,
                                    const PlanOne& plan_one) {
  const auto begin = [&](int64_t next) {
    ahead.number = next;
    ahead.plan = std::async(std::launch::async, [plan_one, next, options = options_] {
      return plan_one(next, options);
    });
  };
  if (ahead.number != number) {
    if (ahead.plan.valid()) ahead.plan.wait();
    begin(number);
  }
  PoolStep plan = ahead.plan.get();
  ahead.number = -1;
  if (has_next) begin(number + 1);
  return plan;
}

PoolStep AttentionPlanner::Take(int64_t step) {
  const double begin = Now();
  PoolStep plan = TakeFrom(
      step_, step, /*has_next=*/true, [this](int64_t number, const PoolPlanOptions& options) {
        return PlanPoolStep(shape_, options,
                            BatchesOfStep(order_, number, batches_, shape_.mesh.dp), rank_);
      });
  waited_seconds_ = Now() - begin;
  return plan;
}

PoolStep AttentionPlanner::TakeEvaluation(int64_t round) {
  EK_CHECK(samples_.has_value()) << "a planner without samples to evaluate";
  return TakeFrom(round_, round, round + 1 < samples_->num_rounds(),
                  [this](int64_t number, const PoolPlanOptions& options) {
                    return PlanPoolForward(shape_, options, samples_->DocumentsOf(number), rank_);
                  });
}

void AttentionPlanner::Learn(const std::vector<ServerLoad>& loads) {
  // By phase, what servers did a second, each counted by its work: one that stands still then
  // makes the others look hardly faster. The rates are rates[phase] / planned[phase].
  double planned[2] = {0, 0}, rates[2] = {0, 0};
  for (const ServerLoad& load : loads) {
    for (int phase = 0; phase < 2; ++phase) {
      if (load.planned[phase] <= 0 || load.seconds[phase] <= 0) continue;
      planned[phase] += load.planned[phase];
      rates[phase] += load.planned[phase] * load.planned[phase] / load.seconds[phase];
    }
  }
  double mean = 0, count = 0;  // speed of those that serve
  for (const double speed : options_.speed) {
    mean += speed;
    count += speed > 0 ? 1 : 0;
  }
  mean /= std::max(count, 1.0);
  for (size_t r = 0; r < loads.size(); ++r) {
    if (options_.speed[r] <= 0) continue;
    if (loads[r].planned[0] + loads[r].planned[1] <= 0 && options_.speed[r] < mean) {
      options_.speed[r] = std::min(mean, kRetry * options_.speed[r]);
      continue;
    }
    // What the work would have taken at the mean rate, over what it took this one.
    double expected = 0, took = 0;
    for (int phase = 0; phase < 2; ++phase) {
      if (planned[phase] <= 0) continue;
      expected += loads[r].planned[phase] * planned[phase] / rates[phase];
      took += loads[r].seconds[phase];
    }
    if (took <= 0 || expected <= 0) continue;
    const double measured = std::max(kLeastSpeed, expected / took);
    if (std::abs(measured / options_.speed[r] - 1) < kNoise) continue;
    options_.speed[r] = std::sqrt(options_.speed[r] * measured);
  }
}

double MeasuredImbalance(const std::vector<ServerLoad>& loads) {
  double most = 0, sum = 0, count = 0;
  for (const ServerLoad& load : loads) {
    if (load.planned[0] + load.planned[1] <= 0) continue;
    const double seconds = load.seconds[0] + load.seconds[1];
    most = std::max(most, seconds);
    sum += seconds;
    ++count;
  }
  return sum > 0 ? most * count / sum : 1;
}

}  // namespace evenkeel
