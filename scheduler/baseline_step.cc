#include "scheduler/baseline_step.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "parallel/pipeline_schedule.h"
#include "scheduler/document_placement.h"

namespace evenkeel {
namespace {

// Core attention of one layer, on the first of the ranks that share a document: its first and last
// part. The others have as many pairs.
double AttentionSeconds(const AttentionTime& time, int64_t length, int cp) {
  if (cp == 1) return time.Seconds(length, length);
  const int64_t parts = 2 * int64_t{cp};
  const int64_t first = (length + parts - 1) / parts;
  const int64_t last = length / parts;
  return time.Seconds(first, first) + time.Seconds(last, length);
}

double BackwardSeconds(const StepCosts& costs, int64_t length, int cp) {
  return AttentionSeconds(costs.backward, length, cp) +
         (costs.forward_again ? AttentionSeconds(costs.forward, length, cp) : 0);
}

struct MicroBatchTime {
  double forward_attention = 0, backward_attention = 0;  // seconds of one layer
  double tokens = 0;                                     // of one rank
};

MicroBatchTime TimeOf(const StepCosts& costs, absl::Span<const int64_t> documents, int cp) {
  MicroBatchTime time;
  for (int64_t length : documents) {
    time.forward_attention += AttentionSeconds(costs.forward, length, cp);
    time.backward_attention += BackwardSeconds(costs, length, cp);
    time.tokens += static_cast<double>(length) / cp;
  }
  return time;
}

// What a rank computes and waits for in a pass of a micro-batch through a stage.
struct PassTime {
  double linear = 0;
  double attention = 0;
  double exposed = 0;

  double seconds() const { return linear + attention + exposed; }
};

PassTime PassOf(const BaselineSetup& setup, const ClusterShape& cluster, const StepCosts& costs,
                const MicroBatchTime& time, int stage, PipelinePhase phase) {
  PassTime pass;
  if (time.tokens <= 0) return pass;
  const bool forward = phase == PipelinePhase::kForward;
  const StageCost& cost = costs.stages[static_cast<size_t>(stage)];
  const auto seconds = [forward](const TokenSeconds& token) {
    return forward ? token.forward : token.backward;
  };
  double token_seconds = seconds(cost.tail) + seconds(cost.embedding);
  if (!forward) token_seconds += cost.head.forward + cost.head.backward;
  for (const SoftmaxLayerCost& layer : cost.layers) {
    token_seconds += seconds(layer.pre) + seconds(layer.post) + seconds(layer.others);
  }
  const auto layers = static_cast<double>(cost.layers.size());
  // A layer's attention is one piece, what is between two of them another.
  pass.linear = token_seconds * time.tokens + (layers + 1) * costs.piece_overhead;
  const double attention = forward ? time.forward_attention : time.backward_attention;
  pass.attention = layers * (attention + costs.piece_overhead);
  // Keys and values are gathered forward, and perhaps backward; their gradients are scattered.
  const double times = forward || setup.gathers_again ? 1 : 0;
  const double all = time.tokens * setup.cp;
  double gather = times * GatherSeconds(cluster, setup.tp, setup.cp,
                                        all * static_cast<double>(costs.token_bytes.kv));
  if (!forward) {
    gather +=
        GatherSeconds(cluster, setup.tp, setup.cp, all * static_cast<double>(costs.token_bytes.kv));
  }
  pass.exposed = layers * (setup.hides_gathers ? std::max(0.0, gather - attention) : gather);
  if (setup.copies_rows && setup.cp > 1) {
    const double rows = time.tokens * (setup.cp + 1);
    double bytes = times * rows * static_cast<double>(costs.token_bytes.kv);
    if (!forward) bytes += rows * static_cast<double>(costs.token_bytes.kv_gradient);
    pass.linear += layers * bytes * costs.copy_seconds_per_byte;
  }
  return pass;
}

// One replica's pipeline: returns when its last pass ends and adds up what ranks compute.
double RunReplica(const BaselineSetup& setup, const ClusterShape& cluster, const StepCosts& costs,
                  absl::Span<const MicroBatchTime> micro_batches, absl::Span<SimBusy> busy) {
  const auto stages = static_cast<int>(costs.stages.size());
  const PipelineSchedule schedule = InterleavedOneForwardOneBackward(
      setup.pp, stages / setup.pp, static_cast<int64_t>(micro_batches.size()));
  const auto at = [&](int stage, int64_t micro_batch) {
    return static_cast<size_t>(stage) * micro_batches.size() + static_cast<size_t>(micro_batch);
  };
  const auto place_in_pool = [&](int stage) { return stage % setup.pp * setup.dp * setup.cp; };
  const size_t passes = costs.stages.size() * micro_batches.size();
  std::vector<double> forward_end(passes), backward_end(passes);
  std::vector<double> free(static_cast<size_t>(setup.pp));
  double last = 0;
  for (const ActionIndex& place : DependencyOrder(schedule)) {
    const auto rank = static_cast<size_t>(place.rank);
    const PipelineAction& action = schedule.actions[rank][static_cast<size_t>(place.index)];
    const int stage = schedule.StageOf(place.rank, action.chunk);
    const MicroBatchTime& time = micro_batches[static_cast<size_t>(action.micro_batch)];
    const PassTime pass = PassOf(setup, cluster, costs, time, stage, action.phase);
    const bool forward = action.phase == PipelinePhase::kForward;
    std::vector<double>& end = forward ? forward_end : backward_end;
    const int from = stage + (forward ? -1 : 1);
    double ready = 0;
    if (from >= 0 && from < stages) {
      const LinkRate& link =
          LinkBetween(cluster, setup.tp, place_in_pool(from), place_in_pool(stage));
      ready = end[at(from, action.micro_batch)] + link.latency +
              time.tokens * costs.stage_bytes / link.bytes_per_second;
    }
    free[rank] = std::max(free[rank], ready) + pass.seconds();
    end[at(stage, action.micro_batch)] = free[rank];
    busy[rank].linear += pass.linear;
    busy[rank].attention += pass.attention;
    busy[rank].message += pass.exposed;
    last = std::max(last, free[rank]);
  }
  return last;
}

std::vector<std::vector<int64_t>> PackBalanced(const BaselineSetup& setup, const StepCosts& costs,
                                               size_t bins, absl::Span<const int64_t> documents) {
  TokenSeconds token;
  double layers = 0;
  for (const StageCost& stage : costs.stages) {
    layers += static_cast<double>(stage.layers.size());
    for (const SoftmaxLayerCost& layer : stage.layers) {
      token += layer.pre;
      token += layer.post;
      token += layer.others;
    }
  }
  const auto seconds = [&](int64_t length) {
    return (token.forward + token.backward) * static_cast<double>(length) / setup.cp +
           layers * (AttentionSeconds(costs.forward, length, setup.cp) +
                     BackwardSeconds(costs, length, setup.cp));
  };
  std::vector<int64_t> sorted(documents.begin(), documents.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const double tokens =
      static_cast<double>(std::accumulate(sorted.begin(), sorted.end(), int64_t{0}));
  const double room = setup.token_slack * tokens / static_cast<double>(bins);

  std::vector<std::vector<int64_t>> packed(bins);
  std::vector<double> load(bins), held(bins);
  for (int64_t length : sorted) {
    // The least loaded with room; if none has, the one with fewest tokens.
    size_t best = bins, emptiest = 0;
    for (size_t bin = 0; bin < bins; ++bin) {
      if (held[bin] < held[emptiest]) emptiest = bin;
      if (held[bin] + static_cast<double>(length) > room) continue;
      if (best == bins || load[bin] < load[best]) best = bin;
    }
    if (best == bins) best = emptiest;
    packed[best].push_back(length);
    load[best] += seconds(length);
    held[best] += static_cast<double>(length);
  }
  // Replicas get micro-batches of descending load in turn, there and back.
  std::vector<size_t> order(bins);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return load[a] > load[b]; });
  std::vector<std::vector<int64_t>> dealt(bins);
  const auto dp = static_cast<size_t>(setup.dp);
  const auto of_replica = static_cast<size_t>(setup.micro_batches);
  for (size_t i = 0; i < bins; ++i) {
    const size_t turn = i / dp;
    const size_t replica = turn % 2 == 0 ? i % dp : dp - 1 - i % dp;
    dealt[replica * of_replica + turn] = std::move(packed[order[i]]);
  }
  return dealt;
}

}  // namespace

std::vector<std::vector<int64_t>> PackMicroBatches(const BaselineSetup& setup,
                                                   const StepCosts& costs,
                                                   absl::Span<const int64_t> documents) {
  const size_t bins = static_cast<size_t>(setup.dp) * static_cast<size_t>(setup.micro_batches);
  return setup.packing == BaselinePacking::kInOrder
             ? CutEvenly(documents, static_cast<int64_t>(bins))
             : PackBalanced(setup, costs, bins, documents);
}

SimulatedStep SimulatePacked(const BaselineSetup& setup, const ClusterShape& cluster,
                             const StepCosts& costs,
                             absl::Span<const std::vector<int64_t>> micro_batches) {
  SimulatedStep step;
  const auto of_replica = static_cast<size_t>(setup.micro_batches);
  for (int replica = 0; replica < setup.dp; ++replica) {
    std::vector<MicroBatchTime> times;
    for (const auto& documents :
         micro_batches.subspan(static_cast<size_t>(replica) * of_replica, of_replica)) {
      times.push_back(TimeOf(costs, documents, setup.cp));
    }
    std::vector<SimBusy> busy(static_cast<size_t>(setup.pp));
    step.seconds =
        std::max(step.seconds, RunReplica(setup, cluster, costs, times, absl::MakeSpan(busy)));
    for (const SimBusy& stage : busy) {
      step.busy.insert(step.busy.end(), static_cast<size_t>(setup.cp), stage);
    }
  }
  step.seconds += costs.step_seconds;
  return step;
}

SimulatedStep SimulateBaseline(const BaselineSetup& setup, const ClusterShape& cluster,
                               const StepCosts& costs, absl::Span<const int64_t> documents) {
  return SimulatePacked(setup, cluster, costs, PackMicroBatches(setup, costs, documents));
}

}  // namespace evenkeel
