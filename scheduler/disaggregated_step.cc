#include "scheduler/disaggregated_step.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <tuple>
#include <utility>

#include "parallel/phase_schedule.h"
#include "scheduler/nano_work.h"

namespace evenkeel {
namespace {

using RankTimes = std::vector<double>;
using Nanos = std::array<NanoWork, 2>;

class StepSimulation {
 public:
  StepSimulation(const DisaggregatedSetup& setup, const ClusterShape& cluster,
                 const StepCosts& costs, ReplicaBatches cu_seqlens, bool record_spans)
      : setup_(setup),
        cluster_(cluster),
        costs_(costs),
        cu_seqlens_(cu_seqlens),
        num_ranks_(static_cast<size_t>(setup.num_ranks())),
        pricing_{setup.tp, setup.has_residents, setup.mode == MessageMode::kSignal},
        timeline_(setup.num_ranks(), setup.mode == MessageMode::kOneStream),
        forward_arrival_(num_ranks_, 0),
        backward_arrival_(num_ranks_, 0) {
    if (record_spans) timeline_.RecordSpans();
    pool_.mesh = {setup.pp, setup.replicas, setup.ranks, setup.tp};
    for (const StageCost& stage : costs.stages) {
      pool_.softmax_layers.push_back(static_cast<int64_t>(stage.layers.size()));
    }
    pool_.num_dedicated = setup.servers;
    pool_.split = setup.split;
    planning_.forward = costs.forward.cost;
    planning_.backward = costs.backward.cost;
    if (setup.planned_costs.has_value()) {
      std::tie(planning_.forward, planning_.backward) = *setup.planned_costs;
    }
    planning_.plan = setup.planning;
    planning_.bytes = costs.token_bytes;
    planning_.speed.assign(num_ranks_, 1);
    if (!setup.owners_serve) {
      std::fill_n(planning_.speed.begin(), static_cast<size_t>(setup.num_owners()), 0.0);
    }
    planning_.balances = setup.balance;
  }

  SimulatedStep Run() {
    const int chunks = pool_.num_chunks();
    const auto micro_batches = static_cast<int64_t>(cu_seqlens_.front().size());
    for (const PhaseTick& tick : SamePhaseTicks(setup_.pp, chunks, micro_batches)) {
      passes_.clear();
      for (int pp = 0; pp < setup_.pp; ++pp) {
        passes_.push_back(PassAt(tick, setup_.pp, chunks, micro_batches, pp));
      }
      RunTick(tick);
    }
    SimulatedStep step;
    step.seconds = timeline_.makespan() + costs_.step_seconds;
    step.busy = timeline_.busy();
    step.plans = summary_;
    if (summary_.plans > 0) step.plans.mean_receive /= static_cast<double>(summary_.plans);
    step.spans = timeline_.spans();
    return step;
  }

 private:
  // The stage of the model that the rank has a pass through in this tick; of a rank without one,
  // its first.
  int StageNumber(int pp) const { return passes_[static_cast<size_t>(pp)].chunk * setup_.pp + pp; }
  const StageCost& StageOf(size_t rank) const {
    const auto pp = static_cast<int>(rank) / setup_.owners_of_stage();
    return costs_.stages[static_cast<size_t>(StageNumber(pp))];
  }

  void Summarize(const DisaggregationPlan& plan) {
    ++summary_.plans;
    double sum = 0, heaviest = 0, speeds = 0, received = 0;
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      const double speed = planning_.speed[rank];
      sum += plan.load[rank];
      speeds += speed;
      if (speed > 0) heaviest = std::max(heaviest, plan.load[rank] / speed);
      summary_.max_receive =
          std::max(summary_.max_receive, static_cast<double>(plan.recv_bytes[rank]));
      summary_.max_send = std::max(summary_.max_send, static_cast<double>(plan.send_bytes[rank]));
      received += static_cast<double>(plan.recv_bytes[rank]);
    }
    if (sum > 0) summary_.heaviest = std::max(summary_.heaviest, heaviest / (sum / speeds));
    summary_.mean_receive += received / static_cast<double>(num_ranks_);
  }

  // `seconds` a token of the rank's tokens, and `copied` bytes before or after.
  double Linear(size_t rank, double ready, double seconds, int64_t tokens, double copied) {
    const int at = static_cast<int>(rank);
    double end = ready;
    if (copied > 0) {
      end = timeline_.Compute(at, SimWork::kCopy, end, copied * costs_.copy_seconds_per_byte);
    }
    if (tokens > 0) {
      end = timeline_.Compute(at, SimWork::kLinear, end,
                              seconds * static_cast<double>(tokens) + costs_.piece_overhead);
    }
    return end;
  }

  // Of a token, what a stage computes before the `step`th softmax layer of a pass and after the one
  // before it: whole, between nano-batches. Behind its last layer, to the end of the stage.
  static double SecondsBetween(const StageCost& stage, PipelinePhase phase, size_t step) {
    const size_t depth = stage.layers.size();
    if (phase == PipelinePhase::kForward) {
      return (step == 0 ? stage.embedding.forward : 0) +
             (step < depth ? stage.layers[step].others.forward : stage.tail.forward);
    }
    return (step == 0 ? stage.head.forward + stage.head.backward + stage.tail.backward
                      : stage.layers[depth - step].others.backward) +
           (step == depth ? stage.embedding.backward : 0);
  }

  // Of the ranks that have done so many softmax layers.
  void Between(PipelinePhase phase, size_t step) {
    for (size_t rank = 0; rank < static_cast<size_t>(setup_.num_owners()); ++rank) {
      const StageCost& stage = StageOf(rank);
      if (tokens_[rank] == 0 || step > stage.layers.size()) continue;
      const double seconds = SecondsBetween(stage, phase, step);
      if (seconds > 0) time_[rank] = Linear(rank, time_[rank], seconds, tokens_[rank], 0);
    }
  }
  bool HasBetween(PipelinePhase phase, size_t step) const {
    for (int pp = 0; pp < setup_.pp; ++pp) {
      const auto rank = static_cast<size_t>(pp * setup_.owners_of_stage());
      const StageCost& stage = StageOf(rank);
      const bool goes_on = passes_[static_cast<size_t>(pp)].exists() && step < stage.layers.size();
      if (goes_on && SecondsBetween(stage, phase, step) > 0) return true;
    }
    return false;
  }

  void RunTick(const PhaseTick& tick) {
    const bool forward = tick.phase == PipelinePhase::kForward;
    const auto begin = std::chrono::steady_clock::now();
    const PlannedTick planned = PlanTick(pool_, planning_, cu_seqlens_, tick);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    std::vector<Nanos> layers;
    for (const PlannedLayer& layer : planned.layers) {
      layers.push_back(Prepare(layer, tick.phase));
      summary_.planning_seconds =
          std::max(summary_.planning_seconds,
                   taken.count() / (2 * static_cast<double>(planned.layers.size())));
    }
    tokens_.clear();
    for (const NanoRows& rows :
         RowsOfNanos(BatchesOfTick(pool_, cu_seqlens_, tick, 0), setup_.num_ranks())) {
      tokens_.push_back(rows[0] + rows[1]);
    }
    RankTimes& arrival = forward ? forward_arrival_ : backward_arrival_;
    time_ = arrival;
    Between(tick.phase, 0);
    for (size_t step = 0; step < planned.layer_of.size();) {
      const size_t first = step++;
      while (step < planned.layer_of.size() && planned.layer_of[step] == planned.layer_of[first] &&
             !HasBetween(tick.phase, step)) {
        ++step;
      }
      RunLayers(tick.phase, layers[static_cast<size_t>(planned.layer_of[first])], first, step);
      Between(tick.phase, step);
    }
    SendToStage(forward ? +1 : -1, &arrival);
  }

  Nanos Prepare(const PlannedLayer& layer, PipelinePhase phase) {
    const std::vector<NanoRows> rows = RowsOfNanos(layer.batches, setup_.num_ranks());
    Nanos nanos;
    for (size_t n = 0; n < nanos.size(); ++n) {
      Summarize(layer.nano[n].plan);
      nanos[n] = WorkOf(layer.nano[n], phase, pricing_, cluster_, costs_);
      for (const NanoRows& of_rank : rows) nanos[n].tokens.push_back(of_rank[n]);
    }
    return nanos;
  }

  // Softmax layers [begin, end) of the tick, which follow one another and in which the same ranks
  // take part, in the order of a rank. All that is under way is waited for before the first and
  // after the last of them.
  void RunLayers(PipelinePhase phase, const Nanos& nanos, size_t begin, size_t end) {
    const size_t first = phase == PipelinePhase::kForward ? 0 : 1;
    const size_t second = 1 - first;
    const bool staggered =
        setup_.order == PieceOrder::kStaggered ||
        (setup_.order == PieceOrder::kStaggeredForward && phase == PipelinePhase::kForward);
    arrived_ = {time_, time_};
    for (size_t step = begin; step < end; ++step) {
      const bool follows = step > begin;
      BeforeAttention(phase, nanos[first], first, step, follows);
      if (staggered && follows) Attend(nanos[second], second);
      BeforeAttention(phase, nanos[second], second, step, follows);
      Attend(nanos[first], first);
      if (!staggered) Attend(nanos[second], second);
    }
    AfterAttention(phase, nanos[first], first, end);
    if (staggered) Attend(nanos[second], second);
    AfterAttention(phase, nanos[second], second, end);
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      time_[rank] = std::max({time_[rank], ready_[0][rank], ready_[1][rank]});
    }
  }

  // From the attention before, where the layer `follows` one, to the dispatch for the `step`th
  // layer of the pass, counted from the end backward.
  void BeforeAttention(PipelinePhase phase, const NanoWork& nano, size_t n, size_t step,
                       bool follows) {
    ready_[n].assign(num_ranks_, 0);
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      if (nano.tokens[rank] == 0) continue;
      const StageCost& stage = StageOf(rank);
      double seconds = 0;
      if (phase == PipelinePhase::kForward) {
        seconds = stage.layers[step].pre.forward;
        if (follows) seconds += stage.layers[step - 1].post.forward;
      } else {
        const size_t layer = stage.layers.size() - 1 - step;
        seconds = stage.layers[layer].post.backward;
        if (follows) seconds += stage.layers[layer + 1].pre.backward;
      }
      const double unpacked = follows ? nano.unpacked[rank] : 0;
      const double end = Linear(rank, arrived_[n][rank], seconds, nano.tokens[rank], unpacked);
      ready_[n][rank] = timeline_.Compute(static_cast<int>(rank), SimWork::kCopy, end,
                                          nano.packed[rank] * costs_.copy_seconds_per_byte);
    }
    timeline_.Exchange(nano.dispatch, nano.rounds, ready_[n], &arrived_[n]);
  }

  // A server waits for all that is for it; what it holds itself is there, earlier on its stream.
  void Attend(const NanoWork& nano, size_t n) {
    RankTimes& times = ready_[n];
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      times[rank] = std::max(times[rank], arrived_[n][rank]);
      if (nano.attend[rank] <= 0) continue;
      times[rank] = timeline_.Compute(static_cast<int>(rank), SimWork::kAttention, times[rank],
                                      nano.attend[rank]);
    }
    timeline_.Exchange(nano.giving_back, nano.return_rounds, times, &arrived_[n]);
  }

  // What is left of the pass's first `end` layers, counted from the end backward.
  void AfterAttention(PipelinePhase phase, const NanoWork& nano, size_t n, size_t end) {
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      if (nano.tokens[rank] == 0) continue;
      const std::vector<SoftmaxLayerCost>& layers = StageOf(rank).layers;
      const double seconds = phase == PipelinePhase::kForward
                                 ? layers[end - 1].post.forward
                                 : layers[layers.size() - end].pre.backward;
      ready_[n][rank] =
          Linear(rank, arrived_[n][rank], seconds, nano.tokens[rank], nano.unpacked[rank]);
    }
  }

  // Activations to the next stage, or gradients to the one before: one round, since the ranks stand
  // in a ring and every rank has one neighbour on each side.
  void SendToStage(int direction, RankTimes* arrived) {
    std::vector<SimMessage> messages;
    std::vector<std::vector<int32_t>> rounds(1);
    RankTimes ready(num_ranks_, 0);
    const auto stages = static_cast<int>(costs_.stages.size());
    const int width = setup_.owners_of_stage();
    for (int pp = 0; pp < setup_.pp; ++pp) {
      const int to = StageNumber(pp) + direction;
      if (to < 0 || to >= stages) continue;
      for (int i = 0; i < width; ++i) {
        const int from = pp * width + i;
        const auto at = static_cast<size_t>(from);
        if (tokens_[at] == 0) continue;
        ready[at] = time_[at];
        rounds[0].push_back(static_cast<int32_t>(messages.size()));
        messages.push_back(MessageOf(pricing_, cluster_, from, to % setup_.pp * width + i,
                                     static_cast<double>(tokens_[at]) * costs_.stage_bytes));
      }
    }
    timeline_.Exchange(messages, rounds, ready, arrived);
  }

  const DisaggregatedSetup& setup_;
  const ClusterShape& cluster_;
  const StepCosts& costs_;
  ReplicaBatches cu_seqlens_;
  size_t num_ranks_;
  NanoPricing pricing_;
  PoolShape pool_;
  TickPlanOptions planning_;
  SimTimeline timeline_;
  // When what a rank's next micro-batch begins with is there.
  RankTimes forward_arrival_, backward_arrival_;
  // Of the tick: the passes of the pipeline ranks; tokens by rank; when a rank can go on.
  std::vector<TickPass> passes_;
  std::vector<int64_t> tokens_;
  RankTimes time_;
  // By nano-batch: when what a rank waits for has arrived, and what it has is ready.
  std::array<RankTimes, 2> arrived_, ready_;
  PlanSummary summary_;
};

}  // namespace

SimulatedStep SimulateDisaggregated(const DisaggregatedSetup& setup, const ClusterShape& cluster,
                                    const StepCosts& costs, ReplicaBatches cu_seqlens,
                                    bool record_spans) {
  return StepSimulation(setup, cluster, costs, cu_seqlens, record_spans).Run();
}

double IdleShare(const SimulatedStep& step) {
  if (step.busy.empty() || step.seconds <= 0) return 0;
  double busy = 0;
  for (const SimBusy& rank : step.busy) busy += rank.compute();
  return std::max(0.0, 1 - busy / (step.seconds * static_cast<double>(step.busy.size())));
}

}  // namespace evenkeel
