// Layouts that have each axis and each choice at least once, for tests that count.
#pragma once

#include <string>
#include <vector>

#include "tests/mpi/layouts/layout_draw.h"

namespace evenkeel::testing_support {

// A layout of `mesh` for a model of LayoutModels(), with documents that are cut, short and long.
inline LayoutCase NamedLayout(const std::string& model, const MeshShape& mesh) {
  LayoutCase layout;
  for (const NamedModel& named : LayoutModels()) {
    if (named.name != model) continue;
    layout.model = named.config;
    layout.model_name = named.name;
  }
  layout.parallel.mesh = mesh;
  for (int replica = 0; replica < mesh.dp; ++replica) {
    // The last replica's last micro-batch is empty.
    layout.lengths.push_back({{37, 1, 20}, {5, 64, 3, 3}, {}});
    if (replica == 0) layout.lengths.back().back() = {41};
  }
  return layout;
}

// Each axis over all `ranks` ranks, with each of its choices, for some of the models.
inline std::vector<LayoutCase> ListedLayouts(int ranks) {
  std::vector<LayoutCase> layouts;
  const Recompute modes[] = {Recompute::kNone, Recompute::kMlp, Recompute::kAllButAttention,
                             Recompute::kLayer};
  const auto add = [&](const std::string& model, const MeshShape& mesh, auto change) {
    layouts.push_back(NamedLayout(model, mesh));
    layouts.back().recompute = modes[layouts.size() % std::size(modes)];
    change(layouts.back().parallel);
  };
  const auto plain = [](ParallelConfig&) {};
  if ((ranks & (ranks - 1)) == 0) {
    for (const char* model : {"qwen2", "tnl", "transnormer_t1", "one key/value head"}) {
      add(model, {1, 1, 1, ranks}, plain);
    }
    for (const Recompute mode : modes) {
      add("hybrid", {1, 1, 1, ranks}, plain);
      layouts.back().recompute = mode;
    }
  }
  for (const auto stage : {ShardingStage::kNone, ShardingStage::kOptimizer,
                           ShardingStage::kGradients, ShardingStage::kParameters}) {
    const auto change = [stage](ParallelConfig& parallel) { parallel.zero = stage; };
    add("qwen2", {1, ranks, 1, 1}, change);
    add("hybrid", {1, ranks, 1, 1}, change);
    if (ranks % 2 == 0) add("tnl", {2, ranks / 2, 1, 1}, change);
  }
  for (const auto split : {SplitPolicy::kContiguous, SplitPolicy::kZigzag}) {
    for (const auto exchange :
         {SoftmaxExchange::kGather, SoftmaxExchange::kRing, SoftmaxExchange::kUlysses}) {
      if (exchange == SoftmaxExchange::kUlysses && 8 % ranks != 0) continue;
      add("llama", {1, 1, ranks, 1}, [&](ParallelConfig& parallel) {
        parallel.split = split;
        parallel.attention = exchange;
      });
    }
    for (const auto states : {StateExchange::kGather, StateExchange::kScan}) {
      add("hybrid", {1, 1, ranks, 1}, [&](ParallelConfig& parallel) {
        parallel.split = split;
        parallel.linear_attention = states;
      });
    }
  }
  add("transnormer_t1", {1, 1, ranks, 1}, plain);
  add("transnormer_t2", {1, 1, ranks, 1}, plain);
  for (const int virtual_stages : {1, 2}) {
    if (ranks * virtual_stages > 8 || (ranks == 1 && virtual_stages > 1)) continue;
    add("qwen3", {ranks, 1, 1, 1},
        [&](ParallelConfig& parallel) { parallel.virtual_stages = virtual_stages; });
    add("tnl", {ranks, 1, 1, 1},
        [&](ParallelConfig& parallel) { parallel.virtual_stages = virtual_stages; });
  }
  return layouts;
}

}  // namespace evenkeel::testing_support
