// A step's disaggregated attention, worked out before the step runs: for each tick of the pipeline,
// which server computes what in each nano-batch. Every rank makes the same plans from the lengths
// of the batch and keeps its own part. Pure but for what Prepare puts on a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/server_exchange.h"
#include "parallel/phase_schedule.h"
#include "scheduler/tick_plan.h"

namespace evenkeel {

struct PoolPlanOptions : TickPlanOptions {
  bool costs_are_times = false;  // seconds, not (query, key) pairs
  bool has_residents = true;     // see MakeServerExchange
};

// One softmax layer of a tick, the same for all layers in which the same stages take part. Nano
// batch 0 is the first.
struct PoolLayer {
  ServerExchange nano[2];
  KeyGradientList sums[2];  // of rows of the first and of the second nano-batch
  // Sums over the two nano-batches, per speed: of the heaviest rank of each, and of the mean of
  // those that serve.
  double heaviest_load = 0;
  double mean_load = 0;

  // Made by Prepare.
  RowSegments segments[2];
  Positions terms[2];
};

struct PoolTick {
  PhaseTick tick;
  // Layers by their number in the tick (in a backward tick counted from the end): which of
  // `layers`. As many as the chunk with the most softmax layers has, of those with a pass.
  std::vector<int> layer_of;
  std::vector<std::unique_ptr<PoolLayer>> layers;

  const PoolLayer& layer(size_t number) const {
    return *layers[static_cast<size_t>(layer_of[number])];
  }
};

struct PoolStep {
  std::vector<PoolTick> ticks;
  double planning_seconds = 0;
};

// Returns the part of `rank` of the pool in the plans of all ticks (scheduler/tick_plan.h).
PoolStep PlanPoolStep(const PoolShape& shape, const PoolPlanOptions& options,
                      ReplicaBatches cu_seqlens, int rank);
// The same for forward passes alone (ForwardTicks).
PoolStep PlanPoolForward(const PoolShape& shape, const PoolPlanOptions& options,
                         ReplicaBatches cu_seqlens, int rank);

// What is on a GPU lives in the context's arena.
void Prepare(const OpContext& context, const TaskHeads& heads, PoolTick& tick);

}  // namespace evenkeel
