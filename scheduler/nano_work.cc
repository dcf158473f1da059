#include "scheduler/nano_work.h"

#include <utility>

namespace evenkeel {
namespace {

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

}  // namespace

SimMessage MessageOf(const NanoPricing& pricing, const ClusterShape& cluster, int from, int to,
                     double bytes) {
  const LinkRate& link = LinkBetween(cluster, pricing.tp, from, to);
  return {from, to, link.latency + (pricing.signals ? 1 : bytes) / link.bytes_per_second};
}

NanoWork WorkOf(const PlannedNano& nano, PipelinePhase phase, const NanoPricing& pricing,
                const ClusterShape& cluster, const StepCosts& costs) {
  const auto& [pool, plan] = nano;
  const auto num_ranks = static_cast<size_t>(pool.num_ranks);
  NanoWork work;
  const AttentionTime& time = phase == PipelinePhase::kForward ? costs.forward : costs.backward;
  work.attend.assign(num_ranks, 0);
  for (const ServerTask& task : plan.tasks) {
    const auto server = static_cast<size_t>(task.server);
    work.attend[server] += time.Seconds(task.q_len, task.kv_len()) / pool.speed[server];
  }
  for (double& seconds : work.attend) {
    if (seconds > 0) seconds += costs.piece_overhead;
  }
  const std::vector<AttentionLink> links = LinksOf(pool, plan.tasks);
  work.rounds = MessageRounds(pool.num_ranks, links);
  work.packed.assign(num_ranks, 0);
  work.unpacked.assign(num_ranks, 0);
  std::vector<LinkBytes> bytes;
  for (const AttentionLink& link : links) {
    bytes.push_back(BytesOf(pool.bytes, link, phase));
    const auto& [out, back, key_gradient] = bytes.back();
    work.dispatch.push_back(MessageOf(pricing, cluster, link.from, link.to, out));
    work.giving_back.push_back(MessageOf(pricing, cluster, link.to, link.from, back));
    work.packed[static_cast<size_t>(link.from)] += out;
    work.unpacked[static_cast<size_t>(link.from)] += back;
  }
  for (const AttentionLink& kept : KeptRows(pool, plan.tasks, pricing.has_residents)) {
    const LinkBytes of_rank = BytesOf(pool.bytes, kept, phase);
    work.packed[static_cast<size_t>(kept.from)] += of_rank.out;
    // Gradients of keys are copied to where those of other servers arrive, then added up.
    work.unpacked[static_cast<size_t>(kept.from)] += of_rank.back + of_rank.key_gradient;
  }
  // A link that carries nothing back (keys alone, forward) has no message.
  for (const std::vector<int32_t>& round : work.rounds) {
    std::vector<int32_t> kept;
    for (int32_t index : round) {
      if (bytes[static_cast<size_t>(index)].back > 0) kept.push_back(index);
    }
    if (!kept.empty()) work.return_rounds.push_back(std::move(kept));
  }
  return work;
}

}  // namespace evenkeel
