#include "scheduler/disaggregated_step.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <tuple>
#include <utility>

#include "parallel/phase_schedule.h"

namespace evenkeel {
namespace {

using RankTimes = std::vector<double>;

// One nano-batch of all stages in one tick: what is computed, and what moves.
struct PooledNano {
  std::vector<int64_t> tokens;                      // by rank
  RankTimes attend;                                 // seconds of one layer, by rank
  std::vector<std::vector<int32_t>> rounds;         // of messages, on the way to servers
  std::vector<std::vector<int32_t>> return_rounds;  // the same: every message turned round
  std::vector<SimMessage> dispatch, giving_back;
  // Bytes that a rank packs before a dispatch, or unpacks and adds up after a return, what it keeps
  // for itself included. Servers receive and send in place.
  RankTimes packed, unpacked;
};

using Nanos = std::array<PooledNano, 2>;

struct LinkBytes {
  double out = 0;           // queries, keys and values to a server, and what goes with them
  double back = 0;          // results, or gradients
  double key_gradient = 0;  // of those
};

LinkBytes BytesOf(const AttentionTokenBytes& bytes, const AttentionLink& link,
                  PipelinePhase phase) {
  const auto q = static_cast<double>(link.q_tokens), kv = static_cast<double>(link.kv_tokens);
  LinkBytes result;
  result.out = q * static_cast<double>(bytes.q) + kv * static_cast<double>(bytes.kv);
  if (phase == PipelinePhase::kForward) {
    result.back = q * static_cast<double>(bytes.out + bytes.lse);
    return result;
  }
  result.out += q * static_cast<double>(2 * bytes.out + bytes.lse);
  result.key_gradient = kv * static_cast<double>(bytes.kv_gradient);
  result.back = q * static_cast<double>(bytes.q) + result.key_gradient;
  return result;
}

class StepSimulation {
 public:
  StepSimulation(const DisaggregatedSetup& setup, const ClusterShape& cluster,
                 const StepCosts& costs, ReplicaBatches cu_seqlens, bool record_spans)
      : setup_(setup),
        cluster_(cluster),
        costs_(costs),
        cu_seqlens_(cu_seqlens),
        num_ranks_(static_cast<size_t>(setup.num_ranks())),
        depth_(costs.stages.front().layers.size()),
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
    const auto micro_batches = static_cast<int64_t>(cu_seqlens_.front().size());
    for (const PhaseTick& tick : SamePhaseTicks(setup_.pp, /*chunks=*/1, micro_batches)) {
      const auto begin = std::chrono::steady_clock::now();
      const PlannedTick planned = PlanTick(pool_, planning_, cu_seqlens_, tick);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      summary_.planning_seconds = std::max(summary_.planning_seconds, taken.count() / 2);
      // All stages have equally many layers, so the layers of a tick are alike.
      const PlannedLayer& layer = planned.layers.front();
      const std::vector<NanoRows> rows = RowsOfNanos(layer.batches, setup_.num_ranks());
      Nanos nanos;
      for (size_t n = 0; n < nanos.size(); ++n) {
        Summarize(layer.nano[n].plan);
        nanos[n] = Prepare(layer.nano[n], tick.phase);
        for (const NanoRows& of_rank : rows) nanos[n].tokens.push_back(of_rank[n]);
      }
      RunTick(tick.phase, nanos);
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
  const StageCost& StageOf(size_t rank) const {
    return costs_.stages[rank / static_cast<size_t>(setup_.owners_of_stage())];
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

  SimMessage MessageOf(int from, int to, double bytes) const {
    const LinkRate& link = LinkBetween(cluster_, setup_.tp, from, to);
    const double sent = setup_.mode == MessageMode::kSignal ? 1 : bytes;
    return {from, to, link.latency + sent / link.bytes_per_second};
  }

  PooledNano Prepare(const PlannedNano& nano, PipelinePhase phase) const {
    const auto& [pool, plan] = nano;
    PooledNano out;
    const AttentionTime& time = phase == PipelinePhase::kForward ? costs_.forward : costs_.backward;
    out.attend.assign(num_ranks_, 0);
    for (const ServerTask& task : plan.tasks) {
      const auto server = static_cast<size_t>(task.server);
      out.attend[server] += time.Seconds(task.q_len, task.kv_len()) / pool.speed[server];
    }
    for (double& seconds : out.attend) {
      if (seconds > 0) seconds += costs_.piece_overhead;
    }
    const std::vector<AttentionLink> links = LinksOf(pool, plan.tasks);
    out.rounds = MessageRounds(setup_.num_ranks(), links);
    out.packed.assign(num_ranks_, 0);
    out.unpacked.assign(num_ranks_, 0);
    std::vector<LinkBytes> bytes;
    for (const AttentionLink& link : links) {
      bytes.push_back(BytesOf(pool.bytes, link, phase));
      out.dispatch.push_back(MessageOf(link.from, link.to, bytes.back().out));
      out.giving_back.push_back(MessageOf(link.to, link.from, bytes.back().back));
      out.packed[static_cast<size_t>(link.from)] += bytes.back().out;
      out.unpacked[static_cast<size_t>(link.from)] += bytes.back().back;
    }
    for (const AttentionLink& kept : KeptRows(pool, plan.tasks, setup_.has_residents)) {
      const LinkBytes of_rank = BytesOf(pool.bytes, kept, phase);
      out.packed[static_cast<size_t>(kept.from)] += of_rank.out;
      // Gradients of keys are copied to where those of other servers arrive, then added up.
      out.unpacked[static_cast<size_t>(kept.from)] += of_rank.back + of_rank.key_gradient;
    }
    // A link that carries nothing back (keys alone, forward) has no message.
    for (const std::vector<int32_t>& round : out.rounds) {
      std::vector<int32_t> kept;
      for (int32_t index : round) {
        if (bytes[static_cast<size_t>(index)].back > 0) kept.push_back(index);
      }
      if (!kept.empty()) out.return_rounds.push_back(std::move(kept));
    }
    return out;
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

  // Of all tokens of both nano-batches at one go.
  void Whole(const Nanos& nanos, const TokenSeconds StageCost::*cost, bool forward, bool backward,
             RankTimes* times) {
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      const int64_t tokens = nanos[0].tokens[rank] + nanos[1].tokens[rank];
      if (tokens == 0) continue;
      const TokenSeconds& token = StageOf(rank).*cost;
      const double seconds = (forward ? token.forward : 0) + (backward ? token.backward : 0);
      if (seconds > 0) (*times)[rank] = Linear(rank, (*times)[rank], seconds, tokens, 0);
    }
  }

  void RunTick(PipelinePhase phase, const Nanos& nanos) {
    const bool forward = phase == PipelinePhase::kForward;
    RankTimes& arrival = forward ? forward_arrival_ : backward_arrival_;
    if (forward) {
      Whole(nanos, &StageCost::embedding, true, false, &arrival);
    } else {
      Whole(nanos, &StageCost::head, true, true, &arrival);
    }
    arrived_ = {arrival, arrival};
    RunPieces(phase, nanos, forward ? 0 : 1);
    RankTimes done(num_ranks_, 0);
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      done[rank] = std::max(ready_[0][rank], ready_[1][rank]);
    }
    if (!forward) Whole(nanos, &StageCost::embedding, false, true, &done);
    SendToStage(nanos, done, forward ? +1 : -1, &arrival);
  }

  // The pieces of a tick in the order of a rank. `first` is the nano-batch that goes first.
  void RunPieces(PipelinePhase phase, const Nanos& nanos, size_t first) {
    const size_t second = 1 - first;
    const bool staggered =
        setup_.order == PieceOrder::kStaggered ||
        (setup_.order == PieceOrder::kStaggeredForward && phase == PipelinePhase::kForward);
    for (size_t layer = 0; layer < depth_; ++layer) {
      BeforeAttention(phase, nanos[first], first, layer);
      if (staggered && layer > 0) Attend(nanos[second], second);
      BeforeAttention(phase, nanos[second], second, layer);
      Attend(nanos[first], first);
      if (!staggered) Attend(nanos[second], second);
    }
    AfterAttention(phase, nanos[first], first);
    if (staggered) Attend(nanos[second], second);
    AfterAttention(phase, nanos[second], second);
  }

  // From the attention before, or the begin of the stage, to the dispatch for the `step`th layer of
  // the pass: layer `step` forward, from the end backward.
  void BeforeAttention(PipelinePhase phase, const PooledNano& nano, size_t n, size_t step) {
    ready_[n].assign(num_ranks_, 0);
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      if (nano.tokens[rank] == 0) continue;
      const StageCost& stage = StageOf(rank);
      double seconds = 0;
      if (phase == PipelinePhase::kForward) {
        seconds = stage.layers[step].pre.forward;
        if (step > 0) seconds += stage.layers[step - 1].post.forward;
      } else {
        const size_t layer = depth_ - 1 - step;
        seconds = stage.layers[layer].post.backward;
        seconds += step > 0 ? stage.layers[layer + 1].pre.backward : stage.tail.backward;
      }
      const double unpacked = step > 0 ? nano.unpacked[rank] : 0;
      const double end = Linear(rank, arrived_[n][rank], seconds, nano.tokens[rank], unpacked);
      ready_[n][rank] = timeline_.Compute(static_cast<int>(rank), SimWork::kCopy, end,
                                          nano.packed[rank] * costs_.copy_seconds_per_byte);
    }
    timeline_.Exchange(nano.dispatch, nano.rounds, ready_[n], &arrived_[n]);
  }

  // A server waits for all that is for it; what it holds itself is there, earlier on its stream.
  void Attend(const PooledNano& nano, size_t n) {
    RankTimes& times = ready_[n];
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      times[rank] = std::max(times[rank], arrived_[n][rank]);
      if (nano.attend[rank] <= 0) continue;
      times[rank] = timeline_.Compute(static_cast<int>(rank), SimWork::kAttention, times[rank],
                                      nano.attend[rank]);
    }
    timeline_.Exchange(nano.giving_back, nano.return_rounds, times, &arrived_[n]);
  }

  // To the end of the stage's layers.
  void AfterAttention(PipelinePhase phase, const PooledNano& nano, size_t n) {
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      if (nano.tokens[rank] == 0) continue;
      const StageCost& stage = StageOf(rank);
      const double seconds = phase == PipelinePhase::kForward
                                 ? stage.tail.forward + stage.layers.back().post.forward
                                 : stage.layers.front().pre.backward;
      ready_[n][rank] =
          Linear(rank, arrived_[n][rank], seconds, nano.tokens[rank], nano.unpacked[rank]);
    }
  }

  // Activations to the next stage, or gradients to the one before: one round, since every rank has
  // one neighbour on each side.
  void SendToStage(const Nanos& nanos, const RankTimes& ready, int direction, RankTimes* arrived) {
    std::vector<SimMessage> messages;
    std::vector<std::vector<int32_t>> rounds(1);
    const int width = setup_.owners_of_stage();
    RankTimes times(num_ranks_, 0);
    for (int stage = 0; stage < setup_.pp; ++stage) {
      const int to = stage + direction;
      if (to < 0 || to >= setup_.pp) continue;
      for (int i = 0; i < width; ++i) {
        const int from = stage * width + i;
        const auto at = static_cast<size_t>(from);
        const int64_t tokens = nanos[0].tokens[at] + nanos[1].tokens[at];
        if (tokens == 0) continue;
        const double bytes = static_cast<double>(tokens) * costs_.stage_bytes;
        rounds[0].push_back(static_cast<int32_t>(messages.size()));
        messages.push_back(MessageOf(from, to * width + i, bytes));
        times[at] = ready[at];
      }
    }
    timeline_.Exchange(messages, rounds, times, arrived);
  }

  const DisaggregatedSetup& setup_;
  const ClusterShape& cluster_;
  const StepCosts& costs_;
  ReplicaBatches cu_seqlens_;
  size_t num_ranks_;
  size_t depth_;  // softmax layers of a stage
  PoolShape pool_;
  TickPlanOptions planning_;
  SimTimeline timeline_;
  // When what a rank's next micro-batch begins with is there.
  RankTimes forward_arrival_, backward_arrival_;
  // Of the tick, by nano-batch: when what a rank waits for has arrived, and what it has is ready.
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
