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
  int64_t together = 0;  // most of the ranks that share a memory
};

// Ranks [i sharers, (i + 1) sharers) share one.
int64_t MostTogether(const ParallelPlan& plan, const std::vector<RankKind>& kinds,
                     const std::vector<int64_t>& bytes, int sharers) {
  std::vector<int64_t> of_place(static_cast<size_t>(plan.mesh.pp * plan.mesh.tp));
  for (size_t i = 0; i < kinds.size(); ++i) {
    for (int tp = kinds[i].tp_begin; tp < kinds[i].tp_end; ++tp) {
      of_place[static_cast<size_t>(kinds[i].stage * plan.mesh.tp + tp)] = bytes[i];
    }
  }
  const int64_t ranks = plan.mesh.num_ranks(), per_stage = ranks / plan.mesh.pp;
  int64_t most = 0, sum = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    if (rank % sharers == 0) sum = 0;
    sum += of_place[static_cast<size_t>(rank / per_stage * plan.mesh.tp + rank % plan.mesh.tp)];
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
    std::vector<int64_t> bytes;
    for (const RankKind& kind : kinds_) {
      const MemoryPlan memory = MemoryOf(config_, plan_, kind, micro_batch_size, recompute);
      bytes.push_back(memory.total());
      if (memory.total() > need.largest.total()) need.largest = memory;
    }
    need.together = MostTogether(plan_, kinds_, bytes, sharers);
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

// The first remedy that fits, as a hint.
std::string Remedy(const RunConfig& config, const ParallelPlan& plan, const NeedOfLayout& need,
                   const MemoryBudget& memory) {
  const Recompute configured = config.runtime.recompute;
  if (const int64_t micro = need.LargestMicroBatch(configured, memory); micro > 0) {
    return absl::StrCat("train.micro_batch_size=", micro, " fits");
  }
  for (const auto& [name, recompute] :
       {std::pair("mlp", Recompute::kMlp), std::pair("layer", Recompute::kLayer)}) {
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
    auto layout = PlanParallel(config.model, sharded.parallel, plan.mesh.num_ranks());
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

}  // namespace

absl::StatusOr<MemoryPlan> PlanRankMemory(const RunConfig& config, int64_t world_size,
                                          int64_t micro_batch_size, Recompute recompute) {
  EK_ASSIGN_OR_RETURN(ParallelPlan plan, PlanParallel(config.model, config.parallel, world_size));
  return NeedOfLayout(config, std::move(plan)).Of(micro_batch_size, recompute, 1).largest;
}

absl::Status CheckFits(const RunConfig& config, int64_t world_size, const MemoryBudget& memory) {
  EK_ASSIGN_OR_RETURN(const ParallelPlan layout,
                      PlanParallel(config.model, config.parallel, world_size));
  const NeedOfLayout needs(config, layout);
  const Need need =
      needs.Of(config.train.micro_batch_size, config.runtime.recompute, memory.sharers);
  if (need.together <= memory.bytes) return absl::OkStatus();
  const MemoryPlan& plan = need.largest;
  const bool many = memory.sharers > 1;
  const bool is_even = need.together == memory.sharers * plan.total();
  const std::string needed =
      is_even ? absl::StrCat(FormatBytes(plan.total()), " each")
              : absl::StrCat(FormatBytes(need.together), " together, the largest ",
                             FormatBytes(plan.total()));
  return absl::ResourceExhaustedError(absl::StrFormat(
      "this run does not fit: %d rank%s of this %s need%s %s (weights, gradients and optimizer %s, "
      "activations %s, workspace %s), the %s has %s: %s",
      memory.sharers, many ? "s" : "", memory.owner, many ? "" : "s", needed,
      FormatBytes(plan.weights + plan.gradients + plan.optimizer), FormatBytes(plan.activations),
      FormatBytes(plan.workspace), memory.owner, FormatBytes(memory.bytes),
      Remedy(config, layout, needs, memory)));
}

}  // namespace evenkeel
