#include "launch/memory_check.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "models/block.h"
#include "models/model_shape.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {
namespace {

// The first remedy that fits, as a hint.
std::string Remedy(const RunConfig& config, const MemoryBudget& memory) {
  // The largest micro-batch that fits, or 0.
  const auto largest = [&](Recompute recompute) {
    int64_t fits = 0,
            most = std::min(config.train.micro_batch_size, config.train.global_batch_size);
    while (fits < most) {
      const int64_t middle = fits + (most - fits + 1) / 2;
      if (PlanRankMemory(config, middle, recompute).total() * memory.sharers <= memory.bytes) {
        fits = middle;
      } else {
        most = middle - 1;
      }
    }
    return fits;
  };
  if (const int64_t micro = largest(config.runtime.recompute); micro > 0) {
    return absl::StrCat("train.micro_batch_size=", micro, " fits");
  }
  for (const auto& [name, recompute] :
       {std::pair("mlp", Recompute::kMlp), std::pair("layer", Recompute::kLayer)}) {
    if (const int64_t micro = largest(recompute); micro > 0) {
      return absl::StrCat("runtime.recompute=", name, " with train.micro_batch_size=", micro,
                          " fits");
    }
  }
  return absl::StrCat(
      memory.sharers > 1 ? absl::StrCat("start fewer ranks a ", memory.owner, ", or ") : "",
      "lower data.sequence_length");
}

}  // namespace

MemoryPlan PlanRankMemory(const RunConfig& config, int64_t micro_batch_size, Recompute recompute) {
  const int64_t samples = std::min(micro_batch_size, config.train.global_batch_size);
  return PlanTrainingMemory(
      ShapeOf(config.model), samples * config.data.sequence_length,
      ComputeShapeOf(config.runtime.device, ComputeDType(config.runtime), config.model.vocab_size),
      PlanOf(recompute));
}

absl::Status CheckFits(const RunConfig& config, const MemoryBudget& memory) {
  const MemoryPlan plan =
      PlanRankMemory(config, config.train.micro_batch_size, config.runtime.recompute);
  if (plan.total() * memory.sharers <= memory.bytes) return absl::OkStatus();
  const bool many = memory.sharers > 1;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "this run does not fit: %d rank%s of this %s need%s %s each (weights, gradients and "
      "optimizer %s, activations %s, workspace %s), the %s has %s: %s",
      memory.sharers, many ? "s" : "", memory.owner, many ? "" : "s", FormatBytes(plan.total()),
      FormatBytes(plan.weights + plan.gradients + plan.optimizer), FormatBytes(plan.activations),
      FormatBytes(plan.workspace), memory.owner, FormatBytes(memory.bytes),
      Remedy(config, memory)));
}

}  // namespace evenkeel
