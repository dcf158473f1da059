// A checkpoint does not know the layout that saved it: loaded under any other, every weight and
// moment is the same bit by bit, and the run goes on as if it had never stopped.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/training_state.h"
#include "parallel/batch_layout.h"
#include "runtime/checkpoint/checkpoint_store.h"
#include "runtime/comm/mpi_runtime.h"
#include "tests/mpi/layouts/layout_run.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using testing_support::CountTargets;
using testing_support::LayoutCase;
using testing_support::LayoutModels;
using testing_support::PartRun;
using testing_support::RandomBatch;
using testing_support::StepOutcome;
using testing_support::WholeRun;

using Batches = std::vector<std::vector<PackedBatch>>;  // [dp][micro-batch]

ParallelConfig Layout(MeshShape mesh, ShardingStage zero = ShardingStage::kNone,
                      int virtual_stages = 1, std::vector<int64_t> layers_per_stage = {}) {
  ParallelConfig config;
  config.mesh = mesh;
  config.zero = zero;
  config.virtual_stages = virtual_stages;
  config.layers_per_stage = std::move(layers_per_stage);
  return config;
}

// Each axis alone, each stage of ZeRO, stages with and without virtual ones, and mixtures. Mesh:
// pp, dp, cp, tp.
std::vector<ParallelConfig> LayoutsOver(int ranks) {
  constexpr ShardingStage kNone = ShardingStage::kNone, kOptimizer = ShardingStage::kOptimizer,
                          kGradients = ShardingStage::kGradients,
                          kParameters = ShardingStage::kParameters;
  const std::vector<ParallelConfig> all = {
      Layout({1, 1, 1, 1}),
      Layout({1, 2, 1, 1}, kNone),
      Layout({1, 2, 1, 1}, kParameters),
      Layout({2, 1, 1, 1}),
      Layout({2, 1, 1, 1}, kNone, 3),
      Layout({1, 1, 2, 1}, kOptimizer),
      Layout({1, 1, 1, 2}),
      Layout({1, 3, 1, 1}, kGradients),
      Layout({3, 1, 1, 1}, kNone, 2),
      Layout({1, 1, 3, 1}, kParameters),
      Layout({1, 4, 1, 1}, kNone),
      Layout({1, 4, 1, 1}, kOptimizer),
      Layout({1, 4, 1, 1}, kGradients),
      Layout({1, 4, 1, 1}, kParameters),
      Layout({4, 1, 1, 1}),
      Layout({4, 1, 1, 1}, kNone, 2),
      Layout({2, 2, 1, 1}, kGradients, 2, {1, 3, 3, 1}),
      Layout({1, 1, 4, 1}),
      Layout({1, 1, 1, 4}),
      Layout({1, 2, 1, 2}, kParameters),
      Layout({2, 1, 1, 2}),
      Layout({1, 1, 2, 2}, kOptimizer),
      Layout({3, 2, 1, 1}, kGradients),
      Layout({6, 1, 1, 1}),
      Layout({2, 1, 3, 1}, kOptimizer, 4),
      Layout({1, 3, 1, 2}, kParameters),
      Layout({1, 8, 1, 1}, kNone),
      Layout({1, 8, 1, 1}, kOptimizer),
      Layout({1, 8, 1, 1}, kGradients),
      Layout({1, 8, 1, 1}, kParameters),
      Layout({8, 1, 1, 1}),
      Layout({4, 2, 1, 1}, kParameters, 2),
      Layout({1, 1, 8, 1}),
      Layout({1, 1, 1, 8}),
      Layout({1, 2, 2, 2}, kOptimizer),
      Layout({2, 1, 2, 2}),
      Layout({2, 2, 1, 2}, kGradients),
      Layout({2, 2, 2, 1}, kParameters, 3, {2, 1, 1, 1, 1, 2}),
      Layout({1, 2, 1, 4}, kParameters),
  };
  std::vector<ParallelConfig> layouts;
  for (const ParallelConfig& layout : all) {
    if (layout.mesh.num_ranks() == ranks) layouts.push_back(layout);
  }
  return layouts;
}

// Grouped key/value heads of softmax attention; lightning attention with LRPE and tied embeddings.
std::vector<LayoutCase> Models() {
  std::vector<LayoutCase> cases;
  for (const auto& named : LayoutModels()) {
    if (named.name != "llama" && named.name != "tnl") continue;
    LayoutCase layout;
    layout.model = named.config;
    layout.model.intermediate_size = 24;  // equal slices on all ranks
    layout.model_name = named.name;
    cases.push_back(layout);
  }
  return cases;
}

// What element `element` of a whole buffer (weights, first, second moment) holds: no two the same.
double ValueAt(size_t buffer, int64_t element) {
  return 1.0 / static_cast<double>(3 * element + static_cast<int64_t>(buffer) + 7);
}

class Reshard : public testing::Test {
 protected:
  Reshard() : mpi_(*MpiRuntime::Create({.timeout_s = 60})), comm_(mpi_.world()) {}

  // A new run under each layout.
  std::vector<std::unique_ptr<PartRun>> RunsOf(LayoutCase layout) {
    std::vector<std::unique_ptr<PartRun>> runs;
    for (const ParallelConfig& parallel : LayoutsOver(comm_.size())) {
      layout.parallel = parallel;
      names_.push_back(layout.ToString());
      runs.push_back(std::make_unique<PartRun>(layout, comm_, DType::kF64));
    }
    return runs;
  }
  // Rank 0 alone has a folder.
  CheckpointStore* NewStore() {
    if (comm_.rank() > 0) return nullptr;
    store_.reset();
    folder_ = std::make_unique<TestFolder>();
    store_ = *CheckpointStore::Open(*folder_ / "checkpoints", CheckpointAccess::kReadWrite);
    return &*store_;
  }
  void Save(PartRun& run, CheckpointStore* store, int64_t step) {
    TrainingProgress progress;
    progress.step = step;
    const absl::Status status = SaveTraining(run.runtime.context, comm_, run.plan.placement(),
                                             store, progress, 1, run.model, run.optimizer);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Restore(PartRun& run, CheckpointStore* store, int64_t step) {
    TrainingProgress progress;
    const auto found =
        RestoreTraining(run.runtime.context, comm_, run.plan.placement(), store, false,
                        TrainingProgress(), &progress, run.model, run.optimizer);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_TRUE(*found);
    ASSERT_EQ(progress.step, step);
  }

  MpiRuntime mpi_;
  Communicator& comm_;
  std::unique_ptr<TestFolder> folder_;
  std::optional<CheckpointStore> store_;
  std::vector<std::string> names_;
};

std::vector<TensorView> StateOf(PartRun& run) {
  return {run.model.weights().view(), run.optimizer.exp_avg().view(),
          run.optimizer.exp_avg_sq().view()};
}

TEST_F(Reshard, EveryLayoutLoadsWhatAnyOtherSaved) {
  if (LayoutsOver(comm_.size()).empty()) GTEST_SKIP() << "no layouts over so many ranks";
  for (const LayoutCase& model : Models()) {
    names_.clear();
    const auto runs = RunsOf(model);
    const ParameterLayout whole(model.model);
    const int64_t n = whole.num_elements();
    for (size_t from = 0; from < runs.size(); ++from) {
      PartRun& saved = *runs[from];
      const std::vector<TensorView> state = StateOf(saved);
      saved.ForEachElement(whole, [&](int64_t owned, int64_t full, const ParameterSpec&) {
        for (size_t b = 0; b < state.size(); ++b) state[b].as<double>()[owned] = ValueAt(b, full);
      });
      CheckpointStore* const store = NewStore();
      Save(saved, store, 1);
      for (size_t to = 0; to < runs.size(); ++to) {
        PartRun& loaded = *runs[to];
        const std::vector<TensorView> mine = StateOf(loaded);
        for (const TensorView& view : mine) {
          std::fill_n(view.as<double>(), view.num_elements(), std::nan(""));
        }
        Restore(loaded, store, 1);
        // On every rank, and gathered.
        loaded.ForEachElement(whole, [&](int64_t owned, int64_t full, const ParameterSpec& spec) {
          for (size_t b = 0; b < mine.size(); ++b) {
            ASSERT_EQ(mine[b].as<double>()[owned], ValueAt(b, full))
                << spec.name << " from " << names_[from] << " to " << names_[to];
          }
        });
        std::vector<std::vector<double>> gathered(
            mine.size(), std::vector<double>(static_cast<size_t>(n), std::nan("")));
        std::vector<TensorView> views;
        for (auto& buffer : gathered) views.push_back(TensorView(buffer.data(), DType::kF64, {n}));
        ASSERT_TRUE(GatherState(comm_, loaded.plan.placement(), whole, mine, views).ok());
        if (comm_.rank() > 0) continue;
        for (size_t b = 0; b < gathered.size(); ++b) {
          for (int64_t i = 0; i < n; ++i) {
            ASSERT_EQ(gathered[b][static_cast<size_t>(i)], ValueAt(b, i))
                << "element " << i << " from " << names_[from] << " to " << names_[to];
          }
        }
      }
    }
  }
}

// Samples of a step, a micro-batch each, dealt to `dp` replicas.
Batches DealStep(const ModelConfig& model, int64_t step, int dp) {
  constexpr int64_t kSamples = 5;
  Batches batches;
  for (int replica = 0; replica < dp; ++replica) {
    batches.emplace_back();
    for (const MicroBatch& micro : MicroBatchesOfRank(step, kSamples, 1, replica, dp)) {
      PackedBatch batch;
      if (micro.num_samples > 0) {
        const int64_t sample = micro.first_sample;
        batch = RandomBatch({1 + sample % 4, 11 + sample % 5, 3}, model.vocab_size,
                            static_cast<uint64_t>(sample));
      }
      batches.back().push_back(std::move(batch));
    }
  }
  return batches;
}

template <typename Run>
StepOutcome Step(const LayoutCase& layout, Run& run, int64_t step, int dp) {
  const Batches batches = DealStep(layout.model, step, dp);
  const double scale = 1.0 / static_cast<double>(CountTargets(batches));
  StepOutcome outcome = run.Gradients(layout, batches, scale);
  AdamWStepParams params;
  params.lr = 1e-2;
  params.step = step + 1;
  params.clip_norm = 0.5;
  run.optimizer.Update(run.runtime.context, params, run.model,
                       TensorView(&outcome.squares, DType::kF64, {1}));
  outcome.loss *= scale;
  return outcome;
}

void ExpectSame(const StepOutcome& have, const StepOutcome& want, const std::string& what) {
  EXPECT_NEAR(have.loss, want.loss, 1e-12 * want.loss) << what;
  EXPECT_NEAR(have.squares, want.squares, 1e-11 * want.squares) << what;
}

TEST_F(Reshard, TheRunGoesOnUnderAnyOtherLayout) {
  if (LayoutsOver(comm_.size()).empty()) GTEST_SKIP() << "no layouts over so many ranks";
  constexpr int64_t kStop = 2;
  for (const LayoutCase& model : Models()) {
    names_.clear();
    std::vector<StepOutcome> want;
    WholeRun whole(model, DType::kF64);
    for (int64_t step = 0; step <= kStop; ++step) want.push_back(Step(model, whole, step, 1));
    ASSERT_LT(want[kStop].loss, want[0].loss);
    const auto runs = RunsOf(model);
    const std::vector<ParallelConfig> layouts = LayoutsOver(comm_.size());
    for (size_t from = 0; from < runs.size(); ++from) {
      LayoutCase layout = model;
      layout.parallel = layouts[from];
      PartRun fresh(layout, comm_, DType::kF64);
      CheckpointStore* const store = NewStore();
      for (int64_t step = 0; step < kStop; ++step) {
        ExpectSame(Step(model, fresh, step, fresh.plan.mesh.dp), want[static_cast<size_t>(step)],
                   names_[from]);
      }
      Save(fresh, store, kStop);
      for (size_t to = 0; to < runs.size(); ++to) {
        Restore(*runs[to], store, kStop);
        ExpectSame(Step(model, *runs[to], kStop, runs[to]->plan.mesh.dp), want[kStop],
                   "from " + names_[from] + " to " + names_[to]);
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
