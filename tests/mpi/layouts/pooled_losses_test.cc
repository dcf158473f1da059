// Held-out losses by disaggregated attention are those of one rank, under any layout, of ranks that
// serve one another and beside dedicated servers. In float64, as layouts_test.cc, whose settings by
// EVENKEEL_LAYOUT_DRAWS and EVENKEEL_LAYOUT_SEED hold here too.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "launch/evaluation.h"
#include "runtime/comm/mpi_runtime.h"
#include "runtime/comm/self_communicator.h"
#include "runtime/data/indexed_dataset_writer.h"
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
using testing_support::WholeRun;

constexpr DType kDType = DType::kF64;
constexpr double kTolerance = 1e-10;

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

class PooledLosses : public testing::Test {
 protected:
  PooledLosses() : mpi_(*MpiRuntime::Create({.timeout_s = 60})), comm_(mpi_.world()) {}

  // Calls `mesh` on the ranks of the mesh and `server` on dedicated servers for layouts of both
  // kinds.
  void ForEachLayout(
      uint64_t first_seed,
      const std::function<void(const LayoutCase&, uint64_t seed, PartRun&)>& mesh,
      const std::function<void(const LayoutCase&, uint64_t seed, ServerRun&)>& server) {
    const int64_t draws = FromEnvironment("EVENKEEL_LAYOUT_DRAWS", 12);
    const auto seed = static_cast<uint64_t>(
        FromEnvironment("EVENKEEL_LAYOUT_SEED", static_cast<int64_t>(first_seed)));
    for (uint64_t i = 0; i < static_cast<uint64_t>(draws); ++i) {
      const bool is_served = i % 2 == 1 && comm_.size() > 1;
      const LayoutCase layout = is_served ? DrawServedLayout(seed + i, comm_.size())
                                          : DrawPooledLayout(seed + i, comm_.size());
      SCOPED_TRACE(layout.ToString());
      const bool serves =
          PlanParallel(layout.model, layout.parallel, comm_.size())->is_dedicated(comm_.rank());
      const auto group = *comm_.Split(serves ? 1 : 0, comm_.rank(), "mesh");
      if (serves) {
        ServerRun run(layout, comm_, kDType);
        server(layout, seed + i, run);
      } else {
        PartRun run(layout, comm_, kDType, group.get());
        mesh(layout, seed + i, run);
        EXPECT_TRUE(run.mesh->log().status().ok()) << run.mesh->log().status();
      }
      if (FailedAnywhere(comm_)) return;
    }
  }

  MpiRuntime mpi_;
  Communicator& comm_;
};

// What of the batch's tokens the rank holds, by their number in the batch.
std::vector<int32_t> TokensOfRank(const PackedBatch& batch, SequenceSplit split, int cp, int rank) {
  PackedBatch numbered = batch;
  std::iota(numbered.tokens.begin(), numbered.tokens.end(), 0);
  if (cp == 1) return numbered.tokens;
  return TakeShard(numbered, SequenceLayout::Make(split, batch.cu_seqlens, cp), rank).tokens;
}

TEST_F(PooledLosses, OfEveryTokenAreThoseOfOneRank) {
  const auto on_mesh = [](const LayoutCase& layout, uint64_t seed, PartRun& run) {
    WholeRun whole(layout, kDType);
    const MeshCoord& at = run.mesh->coord();
    const MeshShape& mesh = run.mesh->shape();
    // Twice: what a round leaves behind is no matter to the next.
    for (uint64_t round = 0; round < 2; ++round) {
      const auto batches = BatchesOf(layout, 100 * seed + round);
      const auto& mine = batches[static_cast<size_t>(at.dp)];
      PoolStep step = PlanPoolForward(run.plan.pool(), run.PoolOptions(layout),
                                      CuSeqlensOf(batches), run.pool_rank());
      std::vector<TokenLosses> losses;
      ASSERT_TRUE(
          run.pipeline.LossesPooled(mine, layout.recompute, run.Pool(layout), step, &losses).ok());
      ASSERT_EQ(losses.size(), mine.size());
      for (size_t m = 0; m < mine.size(); ++m) {
        const TokenLosses& have = losses[m];
        if (at.pp + 1 < mesh.pp) {
          ASSERT_TRUE(have.losses.empty());
          continue;
        }
        std::vector<double> want(mine[m].tokens.size());
        ASSERT_TRUE(
            whole.model.TokenLosses(whole.runtime.context, mine[m], absl::MakeSpan(want)).ok());
        const std::vector<int32_t> tokens =
            TokensOfRank(mine[m], run.plan.context.split, mesh.cp, at.cp);
        ASSERT_EQ(have.losses.size(), tokens.size());
        for (size_t i = 0; i < tokens.size(); ++i) {
          const auto token = static_cast<size_t>(tokens[i]);
          ASSERT_NEAR(have.losses[i], want[token], kTolerance * (1 + want[token]));
          ASSERT_EQ(have.targets[i], mine[m].targets[token]);
          ASSERT_EQ(have.positions[i], mine[m].positions[token]);
        }
      }
    }
  };
  const auto on_server = [](const LayoutCase& layout, uint64_t seed, ServerRun& run) {
    for (uint64_t round = 0; round < 2; ++round) {
      run.Serve(PlanPoolForward(run.plan.pool(), run.plan.pool_options(kDType),
                                CuSeqlensOf(BatchesOf(layout, 100 * seed + round)), run.pool_rank));
    }
  };
  ForEachLayout(3000, on_mesh, on_server);
}

// A data set of random documents in a folder of this rank's.
class HeldOut {
 public:
  HeldOut(Draw& draw, int64_t num_documents, int64_t longest, int64_t vocab_size)
      : folder_(testing::TempDir() + "ek_pooled_losses_XXXXXX") {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    auto writer = *IndexedDatasetWriter::Create(folder_ + "/d", vocab_size);
    for (int64_t document = 0; document < num_documents; ++document) {
      std::vector<int32_t> tokens(static_cast<size_t>(draw.Int(1, longest)));
      for (int32_t& token : tokens) token = static_cast<int32_t>(draw.Int(0, vocab_size - 1));
      EXPECT_TRUE(writer.AppendTokens(tokens).ok());
      EXPECT_TRUE(writer.EndDocument().ok());
    }
    EXPECT_TRUE(writer.Finish({}).ok());
  }
  ~HeldOut() { std::filesystem::remove_all(folder_); }
  HeldOut(const HeldOut&) = delete;
  HeldOut& operator=(const HeldOut&) = delete;

  IndexedDataset Open(int64_t vocab_size) const {
    return *IndexedDataset::Open(folder_ + "/d", vocab_size);
  }

 private:
  std::string folder_;
};

// Several rounds; in the last pass some replicas have no sample.
TEST_F(PooledLosses, OfAnEvaluationAreThoseOfOneRank) {
  constexpr int64_t kLength = 40;
  const auto samples_of = [](const IndexedDataset& dataset, const ParallelPlan& plan,
                             uint64_t seed) {
    const int64_t most = seed % 3 == 0 ? 0 : 11 * static_cast<int64_t>(seed % 5) + 1;
    return *EvaluationSamples::Create(dataset.document_lengths(), kLength, most, plan.mesh.dp,
                                      plan.mesh.pp);
  };
  const auto held_out_of = [](const LayoutCase& layout, uint64_t seed) {
    Draw draw(seed);
    return std::make_unique<HeldOut>(draw, draw.Int(1, 40), 60, layout.model.vocab_size);
  };
  const auto on_mesh = [&](const LayoutCase& layout, uint64_t seed, PartRun& run) {
    const auto held_out = held_out_of(layout, seed);
    const IndexedDataset dataset = held_out->Open(layout.model.vocab_size);
    const EvaluationSamples samples = samples_of(dataset, run.plan, seed);
    const MeshCoord& at = run.mesh->coord();
    const MeshShape& mesh = run.mesh->shape();
    const auto score = [&](int64_t round, absl::Span<const PackedBatch> batches,
                           std::vector<TokenLosses>* losses) {
      PoolStep step = PlanPoolForward(run.plan.pool(), run.PoolOptions(layout),
                                      samples.DocumentsOf(round), run.pool_rank());
      return run.pipeline.LossesPooled(batches, layout.recompute, run.Pool(layout), step, losses);
    };
    const bool counts = at.tp == 0 && at.pp + 1 == mesh.pp;
    const auto have = Evaluate(dataset, samples, {mesh.dp, at.dp, counts}, run.world, score);
    ASSERT_TRUE(have.ok()) << have.status();

    WholeRun whole(layout, kDType);
    const PipelineLinks no_links;
    PipelineRun alone(whole.runtime.context, whole.model, no_links, MeshShape(), 0,
                      whole.runtime.tracker);
    const auto self = MakeSelfCommunicator();
    const auto want = Evaluate(alone, dataset, kLength, samples.count(), {1, 0, true}, *self);
    ASSERT_TRUE(want.ok()) << want.status();
    EXPECT_EQ(have->tokens, want->tokens);
    EXPECT_NEAR(have->loss_sum, want->loss_sum, kTolerance * want->loss_sum);
    ASSERT_EQ(have->buckets.size(), want->buckets.size());
    for (size_t b = 0; b < want->buckets.size(); ++b) {
      EXPECT_EQ(have->buckets[b].tokens, want->buckets[b].tokens);
      EXPECT_NEAR(have->buckets[b].loss_sum, want->buckets[b].loss_sum,
                  kTolerance * want->buckets[b].loss_sum);
    }
  };
  const auto on_server = [&](const LayoutCase& layout, uint64_t seed, ServerRun& run) {
    const auto held_out = held_out_of(layout, seed);
    const IndexedDataset dataset = held_out->Open(layout.model.vocab_size);
    const EvaluationSamples samples = samples_of(dataset, run.plan, seed);
    for (int64_t round = 0; round < samples.num_rounds(); ++round) {
      run.Serve(PlanPoolForward(run.plan.pool(), run.plan.pool_options(kDType),
                                samples.DocumentsOf(round), run.pool_rank));
    }
  };
  ForEachLayout(4000, on_mesh, on_server);
}

}  // namespace
}  // namespace evenkeel
