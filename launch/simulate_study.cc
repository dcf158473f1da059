#include "launch/simulate_study.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "launch/simulate_memory.h"
#include "models/model_shape.h"
#include "parallel/layer_split.h"
#include "runtime/base/status_macros.h"
#include "scheduler/document_placement.h"

namespace evenkeel {
namespace {

constexpr int64_t kMostMicroBatches = 64;  // of a replica with one stage

BaselineSetup BaselineOf(const SimCase& study, const SimLayout& layout) {
  BaselineSetup setup;
  setup.pp = layout.pp;
  setup.dp = layout.dp;
  setup.cp = layout.cp;
  setup.tp = static_cast<int>(study.tp);
  setup.micro_batches = layout.micro_batches;
  setup.packing =
      layout.system == SimSystem::kInOrder ? BaselinePacking::kInOrder : BaselinePacking::kBalanced;
  setup.token_slack = kTokenSlack;
  setup.gathers_again = layout.gathers_again;
  setup.hides_gathers = layout.system == SimSystem::kBalancedHidden;
  return setup;
}

struct StageSplit {
  int64_t pp = 1;
  int64_t virtual_stages = 1;
};

// Those that give every stage as many layers. One pipeline rank alone has one stage.
std::vector<StageSplit> StageSplits(const SimCase& study) {
  std::vector<StageSplit> splits;
  for (int64_t pp : study.pp) {
    for (int64_t virtual_stages : study.virtual_stages) {
      if (study.model.num_layers % (pp * virtual_stages) != 0) continue;
      if (pp > 1 || virtual_stages == 1) splits.push_back({pp, virtual_stages});
    }
  }
  return splits;
}

// Ways to cut a batch for `pp` stages, `samples` of it a pool or replica group.
std::vector<int64_t> MicroBatchChoices(const SimCase& study, int64_t pp, int64_t samples,
                                       bool whole_samples) {
  if (study.micro_batches.has_value()) return {*study.micro_batches};
  std::vector<int64_t> choices;
  const int64_t most = pp == 1 ? kMostMicroBatches : pp << (study.micro_batch_choices - 1);
  for (int64_t count = pp; count <= most; count *= 2) {
    if (whole_samples && count > 1 && samples % count != 0) continue;
    choices.push_back(count);
  }
  return choices;
}

// Micro-batches of as many tokens, each of as many for every replica, in the order in which a run
// deals samples: [replica][micro_batch], documents as prefix sums.
std::vector<std::vector<std::vector<int64_t>>> DealEvenly(const std::vector<int64_t>& documents,
                                                          int64_t micro_batches, int replicas) {
  std::vector<std::vector<std::vector<int64_t>>> dealt(static_cast<size_t>(replicas));
  const auto parts = CutEvenly(documents, micro_batches * replicas);
  for (size_t i = 0; i < parts.size(); ++i) {
    std::vector<int64_t> cu_seqlens = {0};
    for (int64_t length : parts[i]) cu_seqlens.push_back(cu_seqlens.back() + length);
    dealt[i % dealt.size()].push_back(std::move(cu_seqlens));
  }
  return dealt;
}

SimulatedStep RunStep(const SimCase& study, const SimLayout& layout, const StepCosts& costs,
                      const std::vector<int64_t>& documents) {
  if (!layout.is_disaggregated()) {
    return SimulateBaseline(BaselineOf(study, layout), study.cluster.shape, costs, documents);
  }
  DisaggregatedSetup setup;
  setup.pp = layout.pp;
  setup.replicas = layout.dp;
  setup.ranks = layout.cp;
  setup.tp = static_cast<int>(study.tp);
  setup.servers = static_cast<int>(study.servers / layout.pools);
  setup.has_residents = !study.model.qk_norm;
  setup.owners_serve = study.owners_serve;
  setup.mode = study.mode;
  setup.order = study.order;
  setup.planning = study.planning;
  setup.balance = study.balance;
  SimulatedStep all;
  for (const std::vector<int64_t>& share : CutEvenly(documents, layout.pools)) {
    SimulatedStep pool = SimulateDisaggregated(setup, study.cluster.shape, costs,
                                               DealEvenly(share, layout.micro_batches, layout.dp));
    all.seconds = std::max(all.seconds, pool.seconds);
    all.busy.insert(all.busy.end(), pool.busy.begin(), pool.busy.end());
    all.plans.plans += pool.plans.plans;
    all.plans.heaviest = std::max(all.plans.heaviest, pool.plans.heaviest);
    all.plans.max_receive = std::max(all.plans.max_receive, pool.plans.max_receive);
    all.plans.max_send = std::max(all.plans.max_send, pool.plans.max_send);
    all.plans.mean_receive += pool.plans.mean_receive / layout.pools;
    all.plans.planning_seconds = std::max(all.plans.planning_seconds, pool.plans.planning_seconds);
  }
  return all;
}

}  // namespace

absl::StatusOr<StepCosts> PriceStep(const ModelConfig& model, const ClusterConfig& cluster,
                                    const CostOptions& options) {
  EK_ASSIGN_OR_RETURN(StepCosts costs, PriceStep(ShapeOf(model), cluster.shape, options));
  if (cluster.attention.has_value()) {
    EK_ASSIGN_OR_RETURN(
        const AttentionCosts measured,
        CostsOf(*cluster.attention, model.num_heads / options.tp, model.head_size()));
    costs.forward = {measured.forward, 1};
    costs.backward = {measured.backward, 1};
  }
  return costs;
}

const char* SystemText(SimSystem system) {
  switch (system) {
    case SimSystem::kDisaggregated:
      return "disaggregated";
    case SimSystem::kBalanced:
      return "balanced dp x cp";
    case SimSystem::kBalancedHidden:
      return "balanced, hidden";
    case SimSystem::kInOrder:
      return "plain dp";
  }
  return "";
}

absl::StatusOr<std::vector<SimLayout>> LayoutsOf(const SimCase& study, SimSystem system) {
  if (study.gpus % study.tp != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tp ", study.tp, " does not divide ", study.gpus, " GPUs"));
  }
  std::vector<SimLayout> layouts;
  const bool pooled = system == SimSystem::kDisaggregated;
  const int64_t owners = study.ranks() - (pooled ? study.servers : 0);
  for (const auto& [pp, virtual_stages] : StageSplits(study)) {
    if (owners % pp != 0) continue;
    for (int64_t pools : pooled ? study.pools : std::vector<int64_t>{1}) {
      const int64_t width = owners / pp / pools;  // of a stage
      if (width < 1 || width * pp * pools != owners || study.samples % pools != 0) continue;
      if (study.servers % pools != 0) continue;
      for (int64_t cp = 1; cp <= width; ++cp) {
        if (width % cp != 0) continue;
        if (pooled && cp != (study.cp > 0 ? study.cp : width)) continue;
        if (!pooled && system == SimSystem::kInOrder && cp > 1) continue;
        for (int64_t count : MicroBatchChoices(study, pp, study.samples / pools, pooled)) {
          SimLayout layout;
          layout.system = system;
          layout.pools = static_cast<int>(pools);
          layout.pp = static_cast<int>(pp);
          layout.virtual_stages = static_cast<int>(virtual_stages);
          layout.dp = static_cast<int>(width / cp);
          layout.cp = static_cast<int>(cp);
          layout.micro_batches = count;
          // Documents end where samples do, not where a replica's share of half a sample would.
          if (system == SimSystem::kInOrder && study.samples % (layout.dp * count) != 0) continue;
          EK_ASSIGN_OR_RETURN(layout.memory_bytes, LayoutBytes(study, layout));
          layout.fits = layout.memory_bytes <= study.cluster.shape.memory_bytes;
          if (!pooled && !layout.fits && cp > 1) {
            layout.gathers_again = true;
            EK_ASSIGN_OR_RETURN(layout.memory_bytes, LayoutBytes(study, layout));
            layout.fits = layout.memory_bytes <= study.cluster.shape.memory_bytes;
          }
          layouts.push_back(layout);
          // With one stage, more micro-batches than memory asks for gain nothing.
          if (pp == 1 && layout.fits) break;
        }
      }
    }
  }
  if (layouts.empty()) return layouts;
  const bool any_fits = std::any_of(layouts.begin(), layouts.end(),
                                    [](const SimLayout& layout) { return layout.fits; });
  if (any_fits) {
    std::erase_if(layouts, [](const SimLayout& layout) { return !layout.fits; });
  } else {
    layouts = {*std::min_element(
        layouts.begin(), layouts.end(),
        [](const SimLayout& a, const SimLayout& b) { return a.memory_bytes < b.memory_bytes; })};
  }
  return layouts;
}

absl::StatusOr<SimResult> RunLayout(const SimCase& study, const SimLayout& layout,
                                    ThreadPool* threads, int64_t stride) {
  CostOptions options;
  EK_ASSIGN_OR_RETURN(
      options.stage_begin,
      SplitLayers(study.model.num_layers, layout.pp * layout.virtual_stages, /*requested=*/{}));
  options.tp = static_cast<int>(study.tp);
  options.recompute = study.recompute;
  options.element_bytes = study.element_bytes;
  EK_ASSIGN_OR_RETURN(const StepCosts costs, PriceStep(study.model, study.cluster, options));
  std::vector<std::vector<int64_t>> cut;
  auto all = CutBatches(study.documents, study.context, study.samples, study.batches);
  for (size_t i = 0; i < all.size(); i += static_cast<size_t>(stride)) {
    cut.push_back(std::move(all[i]));
  }
  std::vector<SimulatedStep> steps(cut.size());
  threads->ParallelForEach(static_cast<int64_t>(cut.size()), [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    steps[at] = RunStep(study, layout, costs, cut[at]);
  });
  SimResult result;
  result.layout = layout;
  double flops = 0;
  const auto count = static_cast<double>(cut.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    const SimulatedStep& step = steps[i];
    result.step_seconds.push_back(step.seconds);
    result.seconds += step.seconds / count;
    result.idle += IdleShare(step) / count;
    double messages = 0;
    for (const SimBusy& busy : step.busy) messages += busy.message;
    result.waits_message +=
        messages / (step.seconds * static_cast<double>(step.busy.size())) / count;
    result.plans.plans += step.plans.plans;
    result.plans.heaviest = std::max(result.plans.heaviest, step.plans.heaviest);
    result.plans.max_receive = std::max(result.plans.max_receive, step.plans.max_receive);
    result.plans.max_send = std::max(result.plans.max_send, step.plans.max_send);
    result.plans.mean_receive += step.plans.mean_receive / count;
    result.plans.planning_seconds =
        std::max(result.plans.planning_seconds, step.plans.planning_seconds);
    for (int64_t length : cut[i]) {
      flops += costs.flops_per_token * static_cast<double>(length) +
               costs.flops_per_pair * CausalPairs(length, length);
    }
  }
  const double gpu_seconds = result.seconds * count * static_cast<double>(study.gpus);
  result.model_flops = flops / gpu_seconds;
  result.tokens_per_second =
      static_cast<double>(study.context * study.samples) * count / gpu_seconds;
  return result;
}

absl::StatusOr<SimResult> RunBest(const SimCase& study, SimSystem system, ThreadPool* threads) {
  EK_ASSIGN_OR_RETURN(const std::vector<SimLayout> layouts, LayoutsOf(study, system));
  if (layouts.empty()) {
    return absl::NotFoundError(absl::StrCat(SystemText(system), ": no layout of ", study.gpus,
                                            " GPUs with tp ", study.tp, " suits a batch of ",
                                            study.samples, " samples"));
  }
  SimLayout best = layouts.front();
  if (layouts.size() > 1) {
    const int64_t stride = std::max<int64_t>(1, study.batches / study.search_batches);
    double least = 0;
    for (const SimLayout& layout : layouts) {
      EK_ASSIGN_OR_RETURN(const SimResult result, RunLayout(study, layout, threads, stride));
      if (least == 0 || result.seconds < least) {
        least = result.seconds;
        best = layout;
      }
    }
  }
  return RunLayout(study, best, threads);
}

}  // namespace evenkeel
