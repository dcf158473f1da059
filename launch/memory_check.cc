#include "launch/memory_check.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/rank_kinds.h"
#include "runtime/base/status_macros.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {
namespace {

// What the ranks of a run need.
struct Need {
  MemoryPlan largest;    // of a rank
  std::string name;      // of its kind
  int64_t together = 0;  // most of the ranks that share a memory
  int64_t certain = 0;   // the same without attention buffers, of which there is only a bound
};

// More dedicated servers than so many times those of the config are no remedy.
constexpr int kMostTimesServers = 16;

// Ranks [i sharers, (i + 1) sharers) share one; dedicated servers come after the mesh.
int64_t MostTogether(const ParallelPlan& plan, const std::vector<RankKind>& kinds,
                     const std::vector<int64_t>& bytes, int sharers) {
  std::vector<int64_t> of_place(static_cast<size_t>(plan.mesh.pp * plan.mesh.tp));
  int64_t of_server = 0;
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i].is_dedicated) {
      of_server = bytes[i];
      continue;
    }
    for (int tp = kinds[i].tp_begin; tp < kinds[i].tp_end; ++tp) {
      of_place[static_cast<size_t>(kinds[i].stage * plan.mesh.tp + tp)] = bytes[i];
    }
  }
  const int64_t ranks = plan.num_ranks(), per_stage = plan.mesh.num_ranks() / plan.mesh.pp;
  int64_t most = 0, sum = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    if (rank % sharers == 0) sum = 0;
    const int64_t place = rank / per_stage * plan.mesh.tp + rank % plan.mesh.tp;
    sum += plan.is_dedicated(static_cast<int>(rank)) ? of_server
                                                     : of_place[static_cast<size_t>(place)];
    most = std::max(most, sum);
  }
  // Other jobs' ranks beside these are taken to be like them.
  if (sharers > ranks) most = sharers * *std::max_element(bytes.begin(), bytes.end());
  return most;
}

// For one layout; the same for all sizes of micro-batches.
class NeedOfLayout {
 public:
  NeedOfLayout(const RunConfig& config, ParallelPlan plan)
      : config_(config), plan_(std::move(plan)), kinds_(KindsOfRanks(plan_)) {}

  Need Of(int64_t micro_batch_size, Recompute recompute, int sharers) const {
    Need need;
    std::vector<int64_t> bytes, certain;
    for (const RankKind& kind : kinds_) {
      const MemoryPlan memory = MemoryOf(config_, plan_, kind, micro_batch_size, recompute);
      bytes.push_back(memory.total());
      certain.push_back(memory.total() - memory.attention);
      if (memory.total() <= need.largest.total()) continue;
      need.largest = memory;
      need.name = NameOf(plan_, kind);
    }
    need.together = MostTogether(plan_, kinds_, bytes, sharers);
    need.certain = MostTogether(plan_, kinds_, certain, sharers);
    return need;
  }

  // The largest micro-batch that fits, or 0.
  int64_t LargestMicroBatch(Recompute recompute, const MemoryBudget& memory) const {
    int64_t fits = 0;
    int64_t most = std::min(config_.train.micro_batch_size, config_.train.global_batch_size);
    while (fits < most) {
      const int64_t middle = fits + (most - fits + 1) / 2;
      if (Of(middle, recompute, memory.sharers).together <= memory.bytes) {
        fits = middle;
      } else {
        most = middle - 1;
      }
    }
    return fits;
  }

 private:
  const RunConfig& config_;
  ParallelPlan plan_;
  std::vector<RankKind> kinds_;
};

// "parallel.attention_servers=4 on 2 more ranks" if dedicated servers are what does not fit, or
// nothing. Twice as many are tried, and so on.
std::string MoreServers(const RunConfig& config, const ParallelPlan& plan,
                        const MemoryBudget& memory) {
  for (int factor = 2; plan.num_dedicated > 0 && factor <= kMostTimesServers; factor *= 2) {
    RunConfig more = config;
    more.parallel.attention_servers = factor * plan.num_dedicated;
    const int64_t ranks = int64_t{factor - 1} * plan.num_dedicated * plan.mesh.tp;
    auto layout = PlanParallel(config.model, more.parallel, plan.num_ranks() + ranks);
    if (!layout.ok()) break;
    const NeedOfLayout need(more, *std::move(layout));
    const int64_t micro = config.train.micro_batch_size;
    if (need.Of(micro, config.runtime.recompute, memory.sharers).together <= memory.bytes) {
      return absl::StrCat("parallel.attention_servers=", more.parallel.attention_servers, " on ",
                          ranks, " more rank", ranks == 1 ? "" : "s");
    }
  }
  return "";
}

// The first settings that fit, as a hint.
std::string NearestSettings(const RunConfig& config, const ParallelPlan& plan,
                            const NeedOfLayout& need, const MemoryBudget& memory) {
  const Recompute configured = config.runtime.recompute;
  if (const int64_t micro = need.LargestMicroBatch(configured, memory); micro > 0) {
    return absl::StrCat("train.micro_batch_size=", micro, " fits");
  }
  for (const auto& [name, recompute] : {std::pair("mlp", Recompute::kMlp),
                                        std::pair("all_but_attention", Recompute::kAllButAttention),
                                        std::pair("layer", Recompute::kLayer)}) {
    if (const int64_t micro = need.LargestMicroBatch(recompute, memory); micro > 0) {
      return absl::StrCat("runtime.recompute=", name, " with train.micro_batch_size=", micro,
                          " fits");
    }
  }
  // Replicas can share the state of the model.
  for (int zero = static_cast<int>(plan.sharding) + 1; plan.mesh.dp * plan.mesh.cp > 1 && zero <= 3;
       ++zero) {
    RunConfig sharded = config;
    sharded.parallel.zero = static_cast<ShardingStage>(zero);
    auto layout = PlanParallel(config.model, sharded.parallel, plan.num_ranks());
    if (!layout.ok()) break;
    const NeedOfLayout with_zero(sharded, *std::move(layout));
    for (const auto& [text, recompute] :
         {std::pair("", configured),
          std::pair(" and runtime.recompute=layer", Recompute::kLayer)}) {
      if (const int64_t micro = with_zero.LargestMicroBatch(recompute, memory); micro > 0) {
        return absl::StrCat("parallel.zero=", zero, text, " with train.micro_batch_size=", micro,
                            " fits");
      }
    }
  }
  // Shorter samples do not help a model that is too large by itself.
  const MemoryPlan rank = need.Of(1, Recompute::kLayer, 1).largest;
  if (plan.mesh.num_ranks() == 1 && rank.weights + rank.gradients + rank.optimizer > memory.bytes) {
    return absl::StrCat("the model alone does not fit: spread it over more than one ", memory.owner,
                        " with parallel.tp or pp");
  }
  return absl::StrCat(
      memory.sharers > 1 ? absl::StrCat("start fewer ranks a ", memory.owner, ", or ") : "",
      plan.mesh.num_ranks() > 1 ? "raise parallel.tp, pp or cp, or " : "",
      "lower data.sequence_length");
}

std::string Remedy(const RunConfig& config, const ParallelPlan& plan, const NeedOfLayout& need,
                   const MemoryBudget& memory) {
  const std::string servers = MoreServers(config, plan, memory);
  const std::string settings = NearestSettings(config, plan, need, memory);
  if (servers.empty()) return settings;
  return absl::StrCat(servers, " fits; without more ranks: ", settings);
}

}  // namespace

absl::StatusOr<MemoryPlan> PlanRankMemory(const RunConfig& config, int64_t world_size,
                                          int64_t micro_batch_size, Recompute recompute) {
  EK_ASSIGN_OR_RETURN(ParallelPlan plan, PlanParallel(config.model, config.parallel, world_size));
  return NeedOfLayout(config, std::move(plan)).Of(micro_batch_size, recompute, 1).largest;
}

absl::Status CheckFits(const RunConfig& config, const ParallelPlan& layout,
                       const MemoryBudget& memory, std::string* warning) {
  const NeedOfLayout needs(config, layout);
  const Need need =
      needs.Of(config.train.micro_batch_size, config.runtime.recompute, memory.sharers);
  if (need.together <= memory.bytes) return absl::OkStatus();
  const MemoryPlan& plan = need.largest;
  const bool many = memory.sharers > 1;
  const bool is_even = need.together == memory.sharers * plan.total();
  const std::string name = layout.num_dedicated > 0 ? absl::StrCat(need.name, ": ") : "";
  const std::string needed =
      is_even ? absl::StrCat(FormatBytes(plan.total()), " each")
              : absl::StrCat(FormatBytes(need.together), " together, the largest ",
                             FormatBytes(plan.total()));
  const std::string windows =
      plan.windows > 0 ? absl::StrCat(", windows of tp ", FormatBytes(plan.windows)) : "";
  const std::string attention =
      layout.pools_attention() ? absl::StrCat(", attention buffers ", FormatBytes(plan.attention))
                               : "";
  const bool is_certain = need.certain > memory.bytes;
  const std::string text = absl::StrFormat(
      "this run %s: %d rank%s of this %s need%s %s%s (%sweights, gradients and "
      "optimizer %s, activations %s, workspace %s%s%s), the %s has %s: %s",
      is_certain ? "does not fit" : "may not fit", memory.sharers, many ? "s" : "", memory.owner,
      many ? "" : "s", is_certain ? "" : "at most ", needed, name,
      FormatBytes(plan.weights + plan.gradients + plan.optimizer), FormatBytes(plan.activations),
      FormatBytes(plan.workspace), windows, attention, memory.owner, FormatBytes(memory.bytes),
      Remedy(config, layout, needs, memory));
  if (is_certain) return absl::ResourceExhaustedError(text);
  *warning = text;
  return absl::OkStatus();
}

}  // namespace evenkeel
