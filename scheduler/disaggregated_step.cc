#include "scheduler/disaggregated_step.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "parallel/phase_schedule.h"
#include "scheduler/nano_batches.h"

namespace evenkeel {
namespace {

using RankTimes = std::vector<double>;

// One nano-batch of all stages in one tick: who holds what, who attends to what, and what moves.
struct PooledNano {
  std::vector<int64_t> tokens;  // by rank
  RankTimes attend;             // seconds of one layer, by rank
  std::vector<AttentionLink> links;
  std::vector<std::vector<int32_t>> rounds;         // of links, on the way to servers
  std::vector<std::vector<int32_t>> return_rounds;  // the same: every message turned round
  std::vector<SimMessage> dispatch, giving_back;
  // Bytes that a rank packs or unpacks: what it sends of a dispatch, gets back, and so on.
  RankTimes dispatch_sent, return_sent, return_received;
};

using Nanos = std::array<PooledNano, kNanoBatches>;

double BytesOut(const AttentionTokenBytes& bytes, const AttentionLink& link, PipelinePhase phase) {
  const auto q = static_cast<double>(link.q_tokens), kv = static_cast<double>(link.kv_tokens);
  const auto of_kv = kv * static_cast<double>(bytes.kv);
  if (phase == PipelinePhase::kForward) return q * static_cast<double>(bytes.q) + of_kv;
  return q * static_cast<double>(bytes.q + 2 * bytes.out + bytes.lse) + of_kv;
}

double BytesBack(const AttentionTokenBytes& bytes, const AttentionLink& link, PipelinePhase phase) {
  const auto q = static_cast<double>(link.q_tokens), kv = static_cast<double>(link.kv_tokens);
  if (phase == PipelinePhase::kForward) return q * static_cast<double>(bytes.out + bytes.lse);
  return q * static_cast<double>(bytes.q) + kv * static_cast<double>(bytes.kv_gradient);
}

class StepSimulation {
 public:
  StepSimulation(const DisaggregatedSetup& setup, const ClusterShape& cluster,
                 const StepCosts& costs, absl::Span<const std::vector<int64_t>> micro_batches,
                 bool record_spans)
      : setup_(setup),
        cluster_(cluster),
        costs_(costs),
        num_ranks_(static_cast<size_t>(setup.num_ranks())),
        timeline_(setup.num_ranks(), setup.mode == MessageMode::kOneStream) {
    if (record_spans) timeline_.RecordSpans();
    for (const std::vector<int64_t>& documents : micro_batches) {
      layouts_.push_back(LayOutNanoBatches(documents, setup.replicas, setup.ranks));
    }
    depth_ = costs.stages.front().layers.size();
    for (RankTimes& times : forward_arrival_) times.assign(num_ranks_, 0);
    for (RankTimes& times : backward_arrival_) times.assign(num_ranks_, 0);
  }

  SimulatedStep Run() {
    const auto micro_batches = static_cast<int64_t>(layouts_.size());
    const bool reuses =
        setup_.pp == 1 && costs_.forward.cost.is_constant() && costs_.backward.cost.is_constant();
    std::array<DisaggregationPlan, kNanoBatches> plans;
    for (const PhaseTick& tick : SamePhaseTicks(setup_.pp, micro_batches)) {
      std::vector<int64_t> running;
      for (int stage = 0; stage < setup_.pp; ++stage) {
        running.push_back(MicroBatchAt(tick, setup_.pp, micro_batches, stage));
      }
      Nanos nanos;
      for (int nano = 0; nano < kNanoBatches; ++nano) {
        const AttentionPool pool = PoolOf(running, nano);
        DisaggregationPlan& plan = plans[static_cast<size_t>(nano)];
        // With one stage, backward tick i follows forward tick i: the same documents, and the same
        // plan if the costs are in proportion.
        if (tick.phase == PipelinePhase::kForward || !reuses) plan = Plan(pool, tick.phase);
        nanos[static_cast<size_t>(nano)] = Prepare(pool, plan, running, nano, tick.phase);
      }
      if (tick.phase == PipelinePhase::kForward) {
        arrived_ = forward_arrival_;
        RunPieces(tick.phase, nanos, 0);
      } else {
        arrived_ = backward_arrival_;
        RunPieces(tick.phase, nanos, 1);
      }
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
  int StageOf(size_t rank) const {
    const int stage = static_cast<int>(rank) / setup_.owners_of_stage();
    return stage < setup_.pp ? stage : -1;
  }

  AttentionPool PoolOf(absl::Span<const int64_t> running, int nano) const {
    AttentionPool pool;
    pool.num_ranks = setup_.num_ranks();
    pool.speed.assign(num_ranks_, 1);
    if (!setup_.owners_serve) {
      std::fill_n(pool.speed.begin(), static_cast<size_t>(setup_.num_owners()), 0.0);
    }
    pool.bytes = costs_.token_bytes;
    for (int stage = 0; stage < setup_.pp; ++stage) {
      if (running[static_cast<size_t>(stage)] < 0) continue;
      const NanoLayout& layout = layouts_[static_cast<size_t>(running[static_cast<size_t>(stage)])];
      std::vector<int64_t> row(static_cast<size_t>(setup_.owners_of_stage()));
      for (const NanoDocument& document : layout.documents) {
        PooledDocument pooled;
        pooled.first_piece = static_cast<int32_t>(pool.pieces.size());
        bool has_query = false;
        for (const NanoPiece& piece : document.pieces) {
          const int64_t first_row = row[static_cast<size_t>(piece.owner)];
          row[static_cast<size_t>(piece.owner)] += piece.length;
          if (piece.nano > nano) continue;
          pool.pieces.push_back({stage * setup_.owners_of_stage() + piece.owner, piece.begin,
                                 piece.length, first_row});
          pooled.length += piece.length;
          if (piece.nano < nano) pooled.q_begin += piece.length;
          has_query |= piece.nano == nano;
        }
        if (!has_query) {
          pool.pieces.resize(static_cast<size_t>(pooled.first_piece));
          continue;
        }
        pooled.num_pieces = static_cast<int32_t>(pool.pieces.size()) - pooled.first_piece;
        pool.documents.push_back(pooled);
      }
    }
    return pool;
  }

  DisaggregationPlan Plan(const AttentionPool& pool, PipelinePhase phase) {
    const AttentionTime& time = phase == PipelinePhase::kForward ? costs_.forward : costs_.backward;
    const auto begin = std::chrono::steady_clock::now();
    DisaggregationPlan plan = setup_.balance ? PlanDisaggregation(pool, time.cost, setup_.planning)
                                             : PlanInPlace(pool, time.cost);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    summary_.planning_seconds = std::max(summary_.planning_seconds, taken.count());
    ++summary_.plans;
    double sum = 0, heaviest = 0, speed = 0, received = 0;
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      sum += plan.load[rank];
      speed += pool.speed[rank];
      if (pool.speed[rank] > 0) heaviest = std::max(heaviest, plan.load[rank] / pool.speed[rank]);
      summary_.max_receive =
          std::max(summary_.max_receive, static_cast<double>(plan.recv_bytes[rank]));
      summary_.max_send = std::max(summary_.max_send, static_cast<double>(plan.send_bytes[rank]));
      received += static_cast<double>(plan.recv_bytes[rank]);
    }
    if (sum > 0) summary_.heaviest = std::max(summary_.heaviest, heaviest / (sum / speed));
    summary_.mean_receive += received / static_cast<double>(num_ranks_);
    return plan;
  }

  SimMessage MessageOf(int from, int to, double bytes) const {
    const LinkRate& link = LinkBetween(cluster_, setup_.tp, from, to);
    const double sent = setup_.mode == MessageMode::kSignal ? 1 : bytes;
    return {from, to, link.latency + sent / link.bytes_per_second};
  }

  PooledNano Prepare(const AttentionPool& pool, const DisaggregationPlan& plan,
                     absl::Span<const int64_t> running, int nano, PipelinePhase phase) const {
    PooledNano out;
    out.tokens.assign(num_ranks_, 0);
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      const int stage = StageOf(rank);
      if (stage < 0 || running[static_cast<size_t>(stage)] < 0) continue;
      const NanoLayout& layout = layouts_[static_cast<size_t>(running[static_cast<size_t>(stage)])];
      const size_t owner = rank % static_cast<size_t>(setup_.owners_of_stage());
      out.tokens[rank] = layout.tokens[owner][static_cast<size_t>(nano)];
    }
    const AttentionTime& time = phase == PipelinePhase::kForward ? costs_.forward : costs_.backward;
    out.attend.assign(num_ranks_, 0);
    for (const ServerTask& task : plan.tasks) {
      const auto server = static_cast<size_t>(task.server);
      out.attend[server] += time.Seconds(task.q_len, task.kv_len()) / pool.speed[server];
    }
    for (double& seconds : out.attend) {
      if (seconds > 0) seconds += costs_.piece_overhead;
    }
    out.links = LinksOf(pool, plan.tasks);
    out.rounds = MessageRounds(setup_.num_ranks(), out.links);
    out.dispatch_sent.assign(num_ranks_, 0);
    out.return_sent.assign(num_ranks_, 0);
    out.return_received.assign(num_ranks_, 0);
    for (const AttentionLink& link : out.links) {
      const double bytes = BytesOut(pool.bytes, link, phase);
      const double back = BytesBack(pool.bytes, link, phase);
      out.dispatch.push_back(MessageOf(link.from, link.to, bytes));
      out.giving_back.push_back(MessageOf(link.to, link.from, back));
      out.dispatch_sent[static_cast<size_t>(link.from)] += bytes;
      out.return_sent[static_cast<size_t>(link.to)] += back;
      out.return_received[static_cast<size_t>(link.from)] += back;
    }
    // A link that carries nothing back (keys alone, forward) has no message.
    for (const std::vector<int32_t>& round : out.rounds) {
      std::vector<int32_t> kept;
      for (int32_t index : round) {
        const AttentionLink& link = out.links[static_cast<size_t>(index)];
        if (BytesBack(pool.bytes, link, phase) > 0) kept.push_back(index);
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

  // Runs the pieces of a tick in the order of a rank. `first` is the nano-batch that goes first.
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
      const StageCost& stage = costs_.stages[static_cast<size_t>(StageOf(rank))];
      double seconds = 0;
      if (phase == PipelinePhase::kForward) {
        seconds = stage.layers[step].pre.forward;
        if (step > 0) seconds += stage.layers[step - 1].post.forward;
      } else {
        const size_t layer = depth_ - 1 - step;
        seconds = stage.layers[layer].post.backward;
        seconds += step > 0 ? stage.layers[layer + 1].pre.backward : stage.tail.backward;
      }
      const double unpacked = step > 0 ? nano.return_received[rank] : 0;
      const double end = Linear(rank, arrived_[n][rank], seconds, nano.tokens[rank], unpacked);
      ready_[n][rank] = timeline_.Compute(static_cast<int>(rank), SimWork::kCopy, end,
                                          nano.dispatch_sent[rank] * costs_.copy_seconds_per_byte);
    }
    timeline_.Exchange(nano.dispatch, nano.rounds, ready_[n], &arrived_[n]);
  }

  // A server waits for all that is for it; what it holds itself is there, earlier on its stream.
  void Attend(const PooledNano& nano, size_t n) {
    RankTimes& times = ready_[n];
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      const int at = static_cast<int>(rank);
      times[rank] = std::max(times[rank], arrived_[n][rank]);
      if (nano.attend[rank] <= 0) continue;
      const double end = timeline_.Compute(at, SimWork::kAttention, times[rank], nano.attend[rank]);
      times[rank] = timeline_.Compute(at, SimWork::kCopy, end,
                                      nano.return_sent[rank] * costs_.copy_seconds_per_byte);
    }
    timeline_.Exchange(nano.giving_back, nano.return_rounds, times, &arrived_[n]);
  }

  // To the end of the stage, and what it has for its neighbour.
  void AfterAttention(PipelinePhase phase, const PooledNano& nano, size_t n) {
    for (size_t rank = 0; rank < num_ranks_; ++rank) {
      if (nano.tokens[rank] == 0) continue;
      const StageCost& stage = costs_.stages[static_cast<size_t>(StageOf(rank))];
      const double seconds = phase == PipelinePhase::kForward
                                 ? stage.tail.forward + stage.layers.back().post.forward
                                 : stage.layers.front().pre.backward;
      ready_[n][rank] =
          Linear(rank, arrived_[n][rank], seconds, nano.tokens[rank], nano.return_received[rank]);
    }
    if (phase == PipelinePhase::kForward) {
      SendToStage(nano, ready_[n], +1, &forward_arrival_[n]);
    } else {
      SendToStage(nano, ready_[n], -1, &backward_arrival_[n]);
    }
  }

  // Activations to the next stage, or gradients to the one before: one round, since every rank has
  // one neighbour on each side.
  void SendToStage(const PooledNano& nano, const RankTimes& ready, int direction,
                   RankTimes* arrived) {
    std::vector<SimMessage> messages;
    std::vector<std::vector<int32_t>> rounds(1);
    const int width = setup_.owners_of_stage();
    RankTimes times(num_ranks_, 0);
    for (int stage = 0; stage < setup_.pp; ++stage) {
      const int to = stage + direction;
      if (to < 0 || to >= setup_.pp) continue;
      for (int i = 0; i < width; ++i) {
        const int from = stage * width + i;
        const int64_t tokens = nano.tokens[static_cast<size_t>(from)];
        if (tokens == 0) continue;
        const double bytes = static_cast<double>(tokens) * costs_.stage_bytes;
        rounds[0].push_back(static_cast<int32_t>(messages.size()));
        messages.push_back(MessageOf(from, to * width + i, bytes));
        times[static_cast<size_t>(from)] = ready[static_cast<size_t>(from)];
      }
    }
    timeline_.Exchange(messages, rounds, times, arrived);
  }

  const DisaggregatedSetup& setup_;
  const ClusterShape& cluster_;
  const StepCosts& costs_;
  size_t num_ranks_;
  size_t depth_ = 0;  // softmax layers of a stage
  std::vector<NanoLayout> layouts_;
  SimTimeline timeline_;
  // When what a rank's next micro-batch begins with is there.
  std::array<RankTimes, kNanoBatches> forward_arrival_, backward_arrival_;
  // Of the tick, by nano-batch: when what a rank waits for has arrived, and what it has is ready.
  std::array<RankTimes, kNanoBatches> arrived_, ready_;
  PlanSummary summary_;
};

}  // namespace

SimulatedStep SimulateDisaggregated(const DisaggregatedSetup& setup, const ClusterShape& cluster,
                                    const StepCosts& costs,
                                    absl::Span<const std::vector<int64_t>> micro_batches,
                                    bool record_spans) {
  return StepSimulation(setup, cluster, costs, micro_batches, record_spans).Run();
}

double IdleShare(const SimulatedStep& step) {
  if (step.busy.empty() || step.seconds <= 0) return 0;
  double busy = 0;
  for (const SimBusy& rank : step.busy) busy += rank.compute();
  return std::max(0.0, 1 - busy / (step.seconds * static_cast<double>(step.busy.size())));
}

}  // namespace evenkeel
