// The memory a rank is foretold to need under a layout, against what a step takes.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "models/model_shape.h"
#include "runtime/comm/mpi_runtime.h"
#include "scheduler/memory_plan.h"
#include "tests/mpi/layouts/layout_list.h"
#include "tests/mpi/layouts/layout_run.h"

namespace evenkeel {
namespace {

using testing_support::BatchesOf;
using testing_support::CuSeqlensOf;
using testing_support::DrawLayout;
using testing_support::DrawPooledLayout;
using testing_support::FailedAnywhere;
using testing_support::LayoutCase;
using testing_support::ListedLayouts;
using testing_support::PartRun;
using testing_support::StepOutcome;

constexpr DType kDType = DType::kF64;

// So many tokens that they are more than a chunk, and the kernels' scratch is little beside them.
void UseLongBatches(LayoutCase* layout) {
  const size_t micro_batches = layout->parallel.mesh.pp > 1 ? 6 : 2;
  for (auto& replica : layout->lengths) {
    replica.assign(micro_batches, {400, 200, 100});
  }
}

class MemoryOfLayouts : public testing::Test {
 protected:
  MemoryOfLayouts() : mpi_(*MpiRuntime::Create({.timeout_s = 60})), comm_(mpi_.world()) {}

  MemoryPlan Planned(const LayoutCase& layout) {
    const ParallelPlan plan = *PlanParallel(layout.model, layout.parallel, comm_.size());
    const MeshCoord at = *CoordOfRank(plan.mesh, comm_.size(), comm_.rank());
    const ModelShape shape = ShapeOf(layout.model, plan.PartOf(at));
    const RankLayout place = plan.LayoutOf(at);
    const auto& lengths = layout.lengths[static_cast<size_t>(at.dp)];
    return PlanTrainingMemory(shape, place, CountTokens(place, lengths[0]),
                              static_cast<int64_t>(lengths.size()),
                              ComputeShapeOf(Device::kCpu, kDType, shape.vocab_size, plan.mesh.tp),
                              PlanOf(layout.recompute));
  }

  void Compare(const LayoutCase& layout) {
    PartRun run(layout, comm_, kDType);
    const auto batches = BatchesOf(layout, 1);
    for (int step = 1; step <= 2; ++step) {
      const StepOutcome outcome = run.Gradients(layout, batches, 1e-3);
      AdamWStepParams params;
      params.lr = 1e-3;
      params.step = step;
      run.optimizer.Update(run.runtime.context, params, run.model,
                           TensorView(const_cast<double*>(&outcome.squares), DType::kF64, {1}));
    }
    SCOPED_TRACE(layout.ToString());
    if (run.plan.pools_attention()) Evaluate(layout, batches, run);
    const MemoryPlan plan = Planned(layout);
    const MemoryTracker& tracker = run.runtime.tracker;
    EXPECT_EQ(plan.weights, tracker.peak(MemoryPurpose::kWeights));
    EXPECT_EQ(plan.gradients, tracker.peak(MemoryPurpose::kGradients));
    EXPECT_EQ(plan.optimizer, tracker.peak(MemoryPurpose::kOptimizer));
    // Arenas, and, once they are empty, what is on its way between stages.
    const bool is_pipeline = run.mesh->shape().pp > 1 || run.plan.pools_attention();
    const int64_t real =
        (is_pipeline ? run.pipeline.arena_bytes() : run.runtime.arena.peak_bytes()) +
        tracker.current(MemoryPurpose::kWorkspace);
    const int64_t planned = plan.activations + plan.workspace;
    // Of each arena: the scratch of a thread's kernels is left out, allocations are rounded up.
    const int64_t arenas = is_pipeline ? run.pipeline.num_slots() : 1;
    const int64_t scratch = SizeOf(kDType) * 12 * 1024;
    EXPECT_LE(planned, real + arenas * 4096);
    EXPECT_GE(planned, real - arenas * scratch);
  }

  // Held-out batches as large as those of training take no more than these.
  void Evaluate(const LayoutCase& layout, const std::vector<std::vector<PackedBatch>>& batches,
                PartRun& run) {
    const MemoryTracker& tracker = run.runtime.tracker;
    const int64_t trained = tracker.peak_total(), attention = run.pipeline.pool_arena_bytes();
    PoolStep step = PlanPoolForward(run.plan.pool(), run.PoolOptions(layout), CuSeqlensOf(batches),
                                    run.pool_rank());
    std::vector<TokenLosses> losses;
    EXPECT_TRUE(run.pipeline
                    .LossesPooled(batches[static_cast<size_t>(run.mesh->coord().dp)],
                                  layout.recompute, run.Pool(layout), step, &losses)
                    .ok());
    EXPECT_EQ(tracker.peak_total(), trained);
    EXPECT_EQ(run.pipeline.pool_arena_bytes(), attention);
  }

  MpiRuntime mpi_;
  Communicator& comm_;
};

TEST_F(MemoryOfLayouts, IsThatOfListedLayouts) {
  for (LayoutCase layout : ListedLayouts(comm_.size())) {
    UseLongBatches(&layout);
    Compare(layout);
    if (FailedAnywhere(comm_)) return;
  }
}

TEST_F(MemoryOfLayouts, IsThatOfDrawnLayouts) {
  for (uint64_t seed = 950; seed < 956; ++seed) {
    LayoutCase layout = DrawLayout(seed, comm_.size());
    UseLongBatches(&layout);
    Compare(layout);
    if (FailedAnywhere(comm_)) return;
  }
}

TEST_F(MemoryOfLayouts, IsThatOfDisaggregatedAttentionButForWhatTravels) {
  for (uint64_t seed = 970; seed < 982; ++seed) {
    LayoutCase layout = DrawPooledLayout(seed, comm_.size());
    layout.pool_speed.clear();
    UseLongBatches(&layout);
    // Of one micro-batch a slot holds one chunk alone.
    if (seed % 2 == 0) {
      for (auto& replica : layout.lengths) replica.resize(1);
    }
    Compare(layout);
    if (FailedAnywhere(comm_)) return;
  }
}

}  // namespace
}  // namespace evenkeel
