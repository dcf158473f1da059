#include "launch/simulate_run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/attention_planner.h"
#include "launch/parallel_config.h"
#include "launch/rank_kinds.h"
#include "launch/simulate_study.h"
#include "launch/training_data.h"
#include "models/model_shape.h"
#include "nlohmann/json.hpp"
#include "parallel/batch_layout.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/sample_order.h"
#include "scheduler/baseline_step.h"
#include "scheduler/unit_traffic.h"

namespace evenkeel {
namespace {

using Lengths = std::vector<int64_t>;

absl::Status CheckSimulated(const ParallelPlan& plan) {
  const auto refuse = [](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--as-configured does not simulate ", what,
        "; leave it out for the search over layouts, or override it with --model-set"));
  };
  if (plan.sharding > ShardingStage::kOptimizer) return refuse("parallel.zero above 1");
  if (plan.learns_speeds) return refuse("parallel.attention_speeds: measured");
  if (plan.mesh.cp > 1 && !plan.pools_attention() &&
      (plan.context.softmax != SoftmaxExchange::kGather ||
       plan.context.split != SequenceSplit::kZigzag)) {
    return refuse("context parallelism other than attention: gather, split: zigzag");
  }
  return absl::OkStatus();
}

// What every rank does once a step: gradients are summed over the ranks with the same parameters,
// the rank updates what it owns, and where that is a part, weights are gathered. The rank that
// takes longest counts: the others wait for it.
double UpdateSeconds(const ParallelPlan& plan, const ClusterShape& cluster, const StepCosts& costs,
                     const CostOptions& sizes) {
  double most = 0;
  for (const RankKind& kind : KindsOfRanks(plan)) {
    if (kind.is_dedicated) continue;
    const RankLayout layout = plan.LayoutOf({kind.stage, 0, 0, kind.tp_begin});
    const UnitTraffic traffic = UnitTrafficOf(kind.shape, layout, /*micro_batches=*/1);
    const int ranks = layout.data_ranks();
    const auto gather = [&](int64_t elements, int64_t element_bytes) {
      if (elements == 0) return 0.0;
      return GatherSeconds(cluster, plan.mesh.tp, ranks,
                           static_cast<double>(elements * element_bytes));
    };
    // A sum that all ranks get is a reduce-scatter and an all-gather.
    const double exchanged = gather(traffic.reduced, sizes.wide_bytes) +
                             2 * gather(traffic.all_reduced, sizes.wide_bytes) +
                             gather(traffic.gathered * ranks, sizes.element_bytes);
    const auto owned = static_cast<double>(OwnedParameters(plan, kind));
    most = std::max(most, owned * costs.parameter_seconds + exchanged);
  }
  return most;
}

DisaggregatedSetup DisaggregatedOf(const RunConfig& config, const ParallelPlan& plan,
                                   const PoolPlanOptions& planning) {
  DisaggregatedSetup setup;
  setup.pp = plan.mesh.pp;
  setup.replicas = plan.mesh.dp;
  setup.ranks = plan.mesh.cp;
  setup.tp = plan.mesh.tp;
  setup.servers = plan.num_dedicated;
  setup.owners_serve = plan.num_dedicated == 0;
  setup.split = plan.context.split;
  setup.has_residents = planning.has_residents;
  if (!plan.server_mode.overlaps) setup.mode = MessageMode::kOneStream;
  if (config.parallel.attention_signals) setup.mode = MessageMode::kSignal;
  setup.planning = planning.plan;
  setup.planned_costs = {planning.forward, planning.backward};
  return setup;
}

BaselineSetup BaselineOf(const ParallelPlan& plan, int64_t micro_batches) {
  BaselineSetup setup;
  setup.pp = plan.mesh.pp;
  setup.dp = plan.mesh.dp;
  setup.cp = plan.mesh.cp;
  setup.tp = plan.mesh.tp;
  setup.micro_batches = micro_batches;
  setup.gathers_again = true;
  setup.copies_rows = true;
  return setup;
}

// Lengths of the documents of each micro-batch, [replica * micro_batches + i].
std::vector<Lengths> LengthsOf(const ReplicaCuSeqlens& cu_seqlens) {
  std::vector<Lengths> lengths;
  for (const auto& replica : cu_seqlens) {
    for (const auto& cu : replica) {
      lengths.emplace_back();
      for (size_t d = 1; d < cu.size(); ++d) lengths.back().push_back(cu[d] - cu[d - 1]);
    }
  }
  return lengths;
}

}  // namespace

absl::StatusOr<RunSimulation> SimulateRun(const RunConfig& config, const ClusterConfig& cluster,
                                          int64_t ranks, int64_t steps) {
  EK_ASSIGN_OR_RETURN(const ParallelPlan plan, PlanParallel(config.model, config.parallel, ranks));
  EK_RETURN_IF_ERROR(CheckSimulated(plan));
  const DType dtype = ComputeDType(config.runtime);
  CostOptions pricing;
  pricing.stage_begin = plan.stage_begin;
  pricing.tp = plan.mesh.tp;
  pricing.recompute = PlanOf(config.runtime.recompute);
  pricing.element_bytes = SizeOf(dtype);
  pricing.wide_bytes = SizeOf(WideDType(dtype));
  EK_ASSIGN_OR_RETURN(StepCosts costs, PriceStep(config.model, cluster, pricing));
  EK_ASSIGN_OR_RETURN(const IndexedDataset dataset,
                      OpenDataset("data.train", config.data.train, config.model.vocab_size));
  EK_ASSIGN_OR_RETURN(SampleOrder order,
                      SampleOrder::Create(dataset.document_lengths(), config.data.sequence_length,
                                          static_cast<uint64_t>(config.seed)));
  PoolPlanOptions planning;
  if (plan.pools_attention()) {
    EK_ASSIGN_OR_RETURN(planning, PlanningOf(config, plan, dtype));
  }
  RunSimulation run;
  const MeshShape& mesh = plan.mesh;
  run.layout = absl::StrCat("pp ", mesh.pp, " dp ", mesh.dp, " cp ", mesh.cp, " tp ", mesh.tp);
  if (plan.virtual_stages > 1) {
    absl::StrAppend(&run.layout, ", virtual stages ", plan.virtual_stages);
  }
  if (plan.pools_attention()) absl::StrAppend(&run.layout, ", disaggregated");
  run.update_seconds = UpdateSeconds(plan, cluster.shape, costs, pricing);
  for (int64_t step = 0; step < steps; ++step) {
    const ReplicaCuSeqlens batches = BatchesOfStep(
        order, step, {config.train.global_batch_size, config.train.micro_batch_size}, mesh.dp);
    SimulatedStep simulated;
    if (plan.pools_attention()) {
      simulated = SimulateDisaggregated(DisaggregatedOf(config, plan, planning), cluster.shape,
                                        costs, batches);
    } else {
      const auto micro_batches = static_cast<int64_t>(batches.front().size());
      simulated =
          SimulatePacked(BaselineOf(plan, micro_batches), cluster.shape, costs, LengthsOf(batches));
    }
    simulated.seconds += run.update_seconds;
    run.steps.push_back(std::move(simulated));
  }
  return run;
}

std::string RunSimulationText(const RunSimulation& run) {
  std::string text = absl::StrFormat("%s; gradients and optimizer %.3f ms of each step\n",
                                     run.layout, run.update_seconds * 1e3);
  for (size_t i = 0; i < run.steps.size(); ++i) {
    const SimulatedStep& step = run.steps[i];
    absl::StrAppendFormat(&text, "step %d  %.3f ms, idle %.1f %%\n", i + 1, step.seconds * 1e3,
                          100 * IdleShare(step));
  }
  return text;
}

nlohmann::json RunSimulationJson(const RunSimulation& run) {
  nlohmann::json steps = nlohmann::json::array();
  for (const SimulatedStep& step : run.steps) {
    nlohmann::json ranks = nlohmann::json::array();
    for (const SimBusy& busy : step.busy) {
      ranks.push_back({{"linear_s", busy.linear},
                       {"attention_s", busy.attention},
                       {"copy_s", busy.copy},
                       {"message_s", busy.message}});
    }
    steps.push_back({{"seconds", step.seconds}, {"ranks", std::move(ranks)}});
  }
  return {
      {"layout", run.layout}, {"update_seconds", run.update_seconds}, {"steps", std::move(steps)}};
}

}  // namespace evenkeel
