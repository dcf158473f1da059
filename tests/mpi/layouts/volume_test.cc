// What a rank is foretold to send in a step, against what its CommLog counts.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "models/model_shape.h"
#include "runtime/comm/mpi_runtime.h"
#include "scheduler/comm_volume.h"
#include "tests/mpi/layouts/layout_list.h"
#include "tests/mpi/layouts/layout_run.h"

namespace evenkeel {
namespace {

using testing_support::BatchesOf;
using testing_support::DrawLayout;
using testing_support::FailedAnywhere;
using testing_support::LayoutCase;
using testing_support::ListedLayouts;
using testing_support::NamedLayout;
using testing_support::PartRun;
using testing_support::StepOutcome;

constexpr DType kDType = DType::kF64;

class Volume : public testing::Test {
 protected:
  Volume() : mpi_(*MpiRuntime::Create({.timeout_s = 60})), comm_(mpi_.world()) {}

  // Of this rank, in the second step.
  CommVolume Counted(const LayoutCase& layout) {
    PartRun run(layout, comm_, kDType);
    const auto batches = BatchesOf(layout, 1);
    for (int step = 1; step <= 2; ++step) {
      run.mesh->log().ClearVolumes();
      const StepOutcome outcome = run.Gradients(layout, batches, 1e-3);
      AdamWStepParams params;
      params.lr = 1e-3;
      params.step = step;
      run.optimizer.Update(run.runtime.context, params, run.model,
                           TensorView(const_cast<double*>(&outcome.squares), DType::kF64, {1}));
    }
    CommVolume volume;
    for (const auto& [key, counted] : run.mesh->log().volumes()) {
      if (counted.sent_bytes > 0) volume[key] = counted.sent_bytes;
    }
    return volume;
  }

  CommVolume Planned(const LayoutCase& layout) {
    const ParallelPlan plan = *PlanParallel(layout.model, layout.parallel, comm_.size());
    const MeshCoord at = *CoordOfRank(plan.mesh, comm_.size(), comm_.rank());
    const ModelShape shape = ShapeOf(layout.model, plan.PartOf(at));
    const RankLayout place = plan.LayoutOf(at);
    std::vector<MicroBatchTokens> tokens;
    for (const auto& lengths : layout.lengths[static_cast<size_t>(at.dp)]) {
      tokens.push_back(CountTokens(place, lengths));
    }
    const ComputeShape compute =
        ComputeShapeOf(Device::kCpu, kDType, shape.vocab_size, plan.mesh.tp);
    return StepVolume(shape, place, compute, PlanOf(layout.recompute), tokens);
  }

  void Compare(const LayoutCase& layout) {
    const CommVolume have = Counted(layout), want = Planned(layout);
    std::set<std::pair<std::string, std::string>> keys;
    for (const auto* volume : {&have, &want}) {
      for (const auto& [key, _] : *volume) keys.insert(key);
    }
    for (const auto& key : keys) {
      const double counted = have.count(key) > 0 ? have.at(key) : 0;
      const double planned = want.count(key) > 0 ? want.at(key) : 0;
      EXPECT_NEAR(planned, counted, 1e-9 * std::max(1.0, counted))
          << key.first << " " << key.second << ", " << layout.ToString();
    }
  }

  MpiRuntime mpi_;
  Communicator& comm_;
};

TEST_F(Volume, IsThatOfListedLayouts) {
  for (const LayoutCase& layout : ListedLayouts(comm_.size())) {
    Compare(layout);
    if (FailedAnywhere(comm_)) return;
  }
}

TEST_F(Volume, IsThatOfDrawnLayouts) {
  for (uint64_t seed = 900; seed < 912; ++seed) {
    Compare(DrawLayout(seed, comm_.size()));
    if (FailedAnywhere(comm_)) return;
  }
}

// Only states travel: a document ten times as long costs nothing more.
TEST_F(Volume, OfLinearLayersKnowsNoLength) {
  for (const auto split : {SplitPolicy::kContiguous, SplitPolicy::kZigzag}) {
    for (const auto states : {StateExchange::kGather, StateExchange::kScan}) {
      CommVolume volumes[2];
      for (const int64_t factor : {1, 10}) {
        LayoutCase layout = NamedLayout("tnl", {1, 1, comm_.size(), 1});
        layout.parallel.split = split;
        layout.parallel.linear_attention = states;
        layout.lengths = {{{40 * factor}, {48 * factor, 56 * factor}}};
        volumes[factor > 1] = Counted(layout);
      }
      EXPECT_EQ(volumes[0], volumes[1]);
      EXPECT_EQ(volumes[0].size(), comm_.size() > 1 ? 2 : 0);  // states; gradients over "data"
    }
  }
}

}  // namespace
}  // namespace evenkeel
