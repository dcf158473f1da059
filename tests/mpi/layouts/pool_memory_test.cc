// The buffers of disaggregated attention that are foretold for any documents, against what steps
// with random documents take: of ranks that serve one another, and of dedicated servers.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "models/model_shape.h"
#include "runtime/comm/mpi_runtime.h"
#include "scheduler/memory_plan.h"
#include "tests/mpi/layouts/layout_run.h"

namespace evenkeel {
namespace {

using testing_support::BatchesOf;
using testing_support::CuSeqlensOf;
using testing_support::Draw;
using testing_support::DrawPooledLayout;
using testing_support::DrawServedLayout;
using testing_support::FailedAnywhere;
using testing_support::LayoutCase;
using testing_support::PartRun;
using testing_support::ServerRun;

constexpr DType kDType = DType::kF64;
constexpr int64_t kTokens = 700;  // of a micro-batch, more than a chunk
constexpr int kPackings = 4;

// Documents of a micro-batch: one, short ones, or any.
std::vector<int64_t> DrawDocuments(Draw& draw, int64_t kind) {
  std::vector<int64_t> documents;
  for (int64_t left = kTokens; left > 0; left -= documents.back()) {
    const int64_t length = kind == 0 ? kTokens : kind == 1 ? draw.Int(1, 12) : draw.Int(1, kTokens);
    documents.push_back(std::min(left, length));
  }
  return documents;
}

// In every other packing one micro-batch has nearly all the work.
void DrawPacking(uint64_t seed, int packing, LayoutCase* layout) {
  Draw draw(seed * 100 + static_cast<uint64_t>(packing));
  const bool has_one_long = packing % 2 == 0;
  for (auto& replica : layout->lengths) {
    for (auto& documents : replica) {
      documents = DrawDocuments(draw, has_one_long ? 1 : draw.Int(0, 2));
    }
  }
  if (!has_one_long) return;
  auto& replica = layout->lengths[static_cast<size_t>(
      draw.Int(0, static_cast<int64_t>(layout->lengths.size()) - 1))];
  for (auto& documents : replica) documents = DrawDocuments(draw, 0);
}

class PoolMemory : public testing::Test {
 protected:
  PoolMemory() : mpi_(*MpiRuntime::Create({.timeout_s = 60})), comm_(mpi_.world()) {}

  // Trains random packings, whose largest buffers count, on this rank of the mesh.
  int64_t BuffersOfMesh(LayoutCase layout, uint64_t seed, Communicator* mesh) {
    PartRun run(layout, comm_, kDType, mesh);
    for (int packing = 0; packing < kPackings; ++packing) {
      DrawPacking(seed, packing, &layout);
      run.Gradients(layout, BatchesOf(layout, 1), 1e-3);
    }
    return run.pipeline.pool_arena_bytes();
  }

  // Serves them on a dedicated rank.
  int64_t BuffersOfServer(LayoutCase layout, uint64_t seed) {
    ServerRun run(layout, comm_, kDType);
    for (int packing = 0; packing < kPackings; ++packing) {
      DrawPacking(seed, packing, &layout);
      run.Serve(PlanPoolStep(run.plan.pool(), run.plan.pool_options(kDType),
                             CuSeqlensOf(BatchesOf(layout, 1)), run.pool_rank));
    }
    return run.runtime.arena.peak_bytes();
  }

  int64_t Planned(const LayoutCase& layout, const ParallelPlan& plan, bool serves) {
    const MeshCoord at =
        serves ? MeshCoord() : *CoordOfRank(plan.mesh, plan.mesh.num_ranks(), comm_.rank());
    const ModelShape shape = ShapeOf(layout.model, plan.PartOf(at));
    const RankLayout place = plan.LayoutOf(at);
    const MicroBatchTokens tokens = CountTokens(place, {kTokens});
    const ComputeShape compute =
        ComputeShapeOf(Device::kCpu, kDType, shape.vocab_size, plan.mesh.tp);
    if (serves) return PlanServerMemory(shape, place, tokens, compute).attention;
    return PlanTrainingMemory(shape, place, tokens,
                              static_cast<int64_t>(layout.lengths.front().size()), compute,
                              PlanOf(layout.recompute))
        .attention;
  }

  // No rank takes more than is foretold, and the one of its kind that takes most at least a share.
  void Compare(const LayoutCase& layout, uint64_t seed, double least_share) {
    const ParallelPlan plan = *PlanParallel(layout.model, layout.parallel, comm_.size());
    const bool serves = plan.is_dedicated(comm_.rank());
    const auto mesh = *comm_.Split(serves ? 1 : 0, comm_.rank(), "mesh");
    const int64_t real =
        serves ? BuffersOfServer(layout, seed) : BuffersOfMesh(layout, seed, mesh.get());
    const int64_t planned = Planned(layout, plan, serves);
    SCOPED_TRACE(absl::StrCat(serves ? "server of " : "", layout.ToString()));
    // The scratch of a thread's kernels is left out, allocations are rounded up.
    const int64_t scratch = SizeOf(kDType) * 12 * 1024;
    EXPECT_LE(real, planned + scratch);
    double share = static_cast<double>(real) / static_cast<double>(planned);
    EXPECT_TRUE(
        mesh->AllReduce(TensorView(&share, DType::kF64, {1}), ReduceOp::kMax, "share").ok());
    EXPECT_GE(share, least_share);
  }

  MpiRuntime mpi_;
  Communicator& comm_;
};

TEST_F(PoolMemory, OfRanksThatServeIsBounded) {
  for (uint64_t seed = 970; seed < 978; ++seed) {
    LayoutCase layout = DrawPooledLayout(seed, comm_.size());
    layout.pool_speed.clear();
    for (auto& replica : layout.lengths) replica.resize(layout.parallel.mesh.pp > 1 ? 4 : 1);
    Compare(layout, seed, 0.35);
    if (FailedAnywhere(comm_)) return;
  }
}

TEST_F(PoolMemory, OfDedicatedServersIsBounded) {
  if (comm_.size() == 1) GTEST_SKIP() << "one rank has no server";
  for (uint64_t seed = 990; seed < 998; ++seed) {
    LayoutCase layout = DrawServedLayout(seed, comm_.size());
    for (auto& replica : layout.lengths) replica.resize(layout.parallel.mesh.pp > 1 ? 4 : 1);
    Compare(layout, seed, 0.25);
    if (FailedAnywhere(comm_)) return;
  }
}

}  // namespace
}  // namespace evenkeel
