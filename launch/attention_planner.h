// Plans disaggregated attention a step, or a round of an evaluation, ahead, on a thread of its own,
// from the lengths of the next batch alone. Every rank plans alike (attention/pool_step.h), so
// nothing has to be sent.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/pool_step.h"
#include "launch/evaluation_samples.h"
#include "launch/parallel_config.h"
#include "launch/run_config.h"
#include "runtime/data/sample_order.h"

namespace evenkeel {

// What one server's attention took in a step, by phase: forward, backward.
struct ServerLoad {
  double planned[2] = {0, 0};  // by the cost model, for a server of speed 1
  double seconds[2] = {0, 0};  // measured
};

// Samples of a step and of a replica's micro-batch.
struct BatchSizes {
  int64_t global_batch = 1;
  int64_t micro_batch = 1;
};

// Documents of a step's batch.
ReplicaCuSeqlens BatchesOfStep(SampleOrder& order, int64_t step, const BatchSizes& sizes,
                               int replicas);

// What a run plans with, the costs of parallel.attention_cost included. `dtype`: of activations.
absl::StatusOr<PoolPlanOptions> PlanningOf(const RunConfig& config, const ParallelPlan& plan,
                                           DType dtype);

class AttentionPlanner {
 public:
  // `order`: of its own, as SampleOrder is used by one thread. `rank`: of the pool. `samples`: what
  // evaluations score, if there are any.
  AttentionPlanner(const PoolShape& shape, const PoolPlanOptions& options, SampleOrder order,
                   const BatchSizes& batches, int rank,
                   std::optional<EvaluationSamples> samples = std::nullopt);
  // Waits for what is planned ahead.
  ~AttentionPlanner() = default;
  AttentionPlanner(const AttentionPlanner&) = delete;
  AttentionPlanner& operator=(const AttentionPlanner&) = delete;

  // Returns the plan of `step`, and begins that of the next one. Waits where it is not there yet,
  // as in the first step and after one that was not asked for.
  PoolStep Take(int64_t step);
  // The same for a round of an evaluation, and the next round of it, if there is one.
  PoolStep TakeEvaluation(int64_t round);

  // Learns from what all servers measured in a step, the same on every rank, for plans that are
  // begun later: the speed of each follows how long it took for what was planned, half of the way
  // a step, unless it is within the noise. That of a slow one without work rises slowly.
  void Learn(const std::vector<ServerLoad>& loads);

  const std::vector<double>& speed() const { return options_.speed; }
  double waited_seconds() const { return waited_seconds_; }  // in the last Take

 private:
  // What is planned ahead: a step or a round, on a thread that ends before the next one's begins.
  struct Ahead {
    int64_t number = -1;
    std::future<PoolStep> plan;
  };
  using PlanOne = std::function<PoolStep(int64_t number, const PoolPlanOptions& options)>;
  PoolStep TakeFrom(Ahead& ahead, int64_t number, bool has_next, const PlanOne& plan_one);

  PoolShape shape_;
  PoolPlanOptions options_;
  SampleOrder order_;
  BatchSizes batches_;
  std::optional<EvaluationSamples> samples_;
  int rank_;
  double waited_seconds_ = 0;
  Ahead step_, round_;  // last: their threads read the rest
};

// Heaviest over mean of what the servers that were given work measured; 1 if there are none.
double MeasuredImbalance(const std::vector<ServerLoad>& loads);

}  // namespace evenkeel
