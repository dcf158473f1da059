#include "launch/rank_kinds.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/model_shape.h"
#include "parallel/batch_layout.h"

namespace evenkeel {
namespace {

bool IsAlike(const ModelShape& a, const ModelShape& b) {
  return a.vocab_size == b.vocab_size && a.unit_begin == b.unit_begin;
}

// Dedicated servers have no vocabulary.
ComputeShape ComputeOf(const RunConfig& config, const ParallelPlan& plan, const ModelShape& shape) {
  ComputeShape compute = ComputeShapeOf(config.runtime.device, ComputeDType(config.runtime),
                                        std::max<int64_t>(1, shape.vocab_size), plan.mesh.tp);
  compute.fp8 = config.runtime.fp8;
  return compute;
}

std::vector<int64_t> Documents(const RunConfig& config, int64_t samples) {
  return std::vector<int64_t>(static_cast<size_t>(samples), config.data.sequence_length);
}

// Calls body(layout) for the ranks of the kind that may differ: the first on the cp axis, the last
// and one between them.
template <typename Body>
void ForEachPlace(const ParallelPlan& plan, const RankKind& kind, const Body& body) {
  const int last = plan.mesh.cp - 1;
  for (const int cp : std::set<int>{0, std::min(1, last), last}) {
    // The last tensor-parallel rank is the one with the odd rows.
    body(plan.LayoutOf({kind.stage, 0, cp, kind.tp_end - 1}));
  }
}

}  // namespace

std::vector<RankKind> KindsOfRanks(const ParallelPlan& plan) {
  std::vector<RankKind> kinds;
  for (int stage = 0; stage < plan.mesh.pp; ++stage) {
    for (int tp = 0; tp < plan.mesh.tp; ++tp) {
      ModelShape shape = ShapeOf(plan.model, plan.PartOf({stage, 0, 0, tp}));
      if (tp == 0 || !IsAlike(kinds.back().shape, shape)) {
        kinds.push_back({false, stage, tp, tp, 0, std::move(shape)});
      }
      kinds.back().tp_end = tp + 1;
      kinds.back().num_ranks += int64_t{1} * plan.mesh.dp * plan.mesh.cp;
    }
  }
  if (plan.num_dedicated > 0) {
    ModelShape served;
    served.pooled = kinds.front().shape.pooled;
    served.is_first = served.is_last = false;
    kinds.push_back({true, 0, 0, plan.mesh.tp, int64_t{1} * plan.num_dedicated * plan.mesh.tp,
                     std::move(served)});
  }
  return kinds;
}

std::string NameOf(const ParallelPlan& plan, const RankKind& kind) {
  if (kind.is_dedicated) return "server";
  std::string name = absl::StrCat("stage ", kind.stage);
  if (kind.tp_end - kind.tp_begin == plan.mesh.tp) return name;
  absl::StrAppend(&name, ", tp ", kind.tp_begin);
  if (kind.tp_end - kind.tp_begin > 1) absl::StrAppend(&name, "-", kind.tp_end - 1);
  return name;
}

int64_t OwnedParameters(const ParallelPlan& plan, const RankKind& kind) {
  if (kind.is_dedicated) return 0;
  const RankLayout layout = plan.LayoutOf({kind.stage, 0, 0, kind.tp_begin});
  const RowRange last =
      OwnedRanges(kind.shape.unit_begin, layout.stage(), layout.data_ranks(), 0).back();
  return last.to + last.count;
}

int64_t MicroBatchesPerReplica(const RunConfig& config, const ParallelPlan& plan,
                               int64_t micro_batch_size) {
  const int64_t turn = plan.mesh.dp * micro_batch_size;
  return (config.train.global_batch_size + turn - 1) / turn;
}

MemoryPlan MemoryOf(const RunConfig& config, const ParallelPlan& plan, const RankKind& kind,
                    int64_t micro_batch_size, Recompute recompute) {
  const std::vector<int64_t> documents =
      Documents(config, std::min(micro_batch_size, config.train.global_batch_size));
  const ComputeShape compute = ComputeOf(config, plan, kind.shape);
  if (kind.is_dedicated) {
    const RankLayout layout = plan.LayoutOf(MeshCoord());
    return PlanServerMemory(kind.shape, layout, CountTokens(layout, documents), compute);
  }
  MemoryPlan most;
  ForEachPlace(plan, kind, [&](const RankLayout& layout) {
    const MemoryPlan memory = PlanTrainingMemory(
        kind.shape, layout, CountTokens(layout, documents),
        MicroBatchesPerReplica(config, plan, micro_batch_size), compute, PlanOf(recompute));
    if (memory.total() > most.total()) most = memory;
  });
  return most;
}

CommVolume VolumeOf(const RunConfig& config, const ParallelPlan& plan, const RankKind& kind) {
  CommVolume most;
  if (kind.is_dedicated) return most;
  const ComputeShape compute = ComputeOf(config, plan, kind.shape);
  ForEachPlace(plan, kind, [&](const RankLayout& layout) {
    std::vector<MicroBatchTokens> tokens;
    int64_t samples = -1;
    for (const MicroBatch& micro : MicroBatchesOfRank(
             0, config.train.global_batch_size, config.train.micro_batch_size, 0, plan.mesh.dp)) {
      // Micro-batches are alike but for the last one.
      if (micro.num_samples == samples) {
        tokens.push_back(tokens.back());
        continue;
      }
      samples = micro.num_samples;
      tokens.push_back(CountTokens(layout, Documents(config, samples)));
    }
    CommVolume volume =
        StepVolume(kind.shape, layout, compute, PlanOf(config.runtime.recompute), tokens);
    if (TotalBytes(volume) >= TotalBytes(most)) most = std::move(volume);
  });
  return most;
}

}  // namespace evenkeel
