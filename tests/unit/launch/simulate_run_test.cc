// Steps of a run in the simulator beside the plans that the run's ranks make.
#include "launch/simulate_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "launch/attention_planner.h"
#include "models/model_shape.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/indexed_dataset_writer.h"
#include "tests/unit/data/temp_folder.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kLayers = 4;

class SimulateRunTest : public ::testing::Test {
 protected:
  SimulateRunTest() {
    std::mt19937 random(3);
    auto writer = IndexedDatasetWriter::Create(folder_.Path("data"), 1000);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (int i = 0; i < 60; ++i) {
      const std::vector<int32_t> tokens(i % 8 == 0 ? 900 : 5 + random() % 200, 7);
      EXPECT_TRUE(writer->AppendTokens(tokens).ok());
      EXPECT_TRUE(writer->EndDocument().ok());
    }
    EXPECT_TRUE(writer->Finish({.tokenizer = "bytes", .eod_id = 9, .sources = {"a"}}).ok());
    config_.data.train = folder_.Path("data");
    config_.data.sequence_length = 512;
    config_.train.global_batch_size = 8;
    config_.train.micro_batch_size = 1;
    config_.model.vocab_size = 1000;
    config_.model.hidden_size = 64;
    config_.model.intermediate_size = 128;
    config_.model.num_layers = kLayers;
    config_.model.num_heads = 4;
    config_.model.layer_pattern = {LayerKind::kSoftmax};
    config_.parallel.ping_pong = PingPong::kOff;
    cluster_.shape.network = cluster_.shape.nvlink = {1e12, 0};
    cluster_.shape.copy_bytes_per_second = 1e15;
    cluster_.shape.attention_tile = 1;
    cluster_.shape.measured = {.pre_forward = 1e-6,
                               .post_forward = 2e-6,
                               .pre_backward = 3e-6,
                               .post_backward = 4e-6,
                               .embedding_forward = 5e-6,
                               .embedding_backward = 6e-6,
                               .head_forward = 7e-6,
                               .head_backward = 8e-6,
                               .attention_forward = 1e-6,
                               .attention_backward = 3e-6,
                               .parameter = 1e-9};
  }

  // What the ranks of the run plan for themselves in a step, in pairs of one layer, by phase.
  std::vector<std::array<double, 2>> PlannedPairs(int64_t ranks, int64_t step) {
    const ParallelPlan plan = *PlanParallel(config_.model, config_.parallel, ranks);
    const IndexedDataset dataset =
        *IndexedDataset::Open(config_.data.train, config_.model.vocab_size);
    SampleOrder order =
        *SampleOrder::Create(dataset.document_lengths(), 512, static_cast<uint64_t>(config_.seed));
    const ReplicaCuSeqlens batches = BatchesOfStep(order, step, {8, 1}, plan.mesh.dp);
    std::vector<std::array<double, 2>> pairs;
    for (int rank = 0; rank < plan.pool().num_ranks(); ++rank) {
      pairs.push_back({0, 0});
      const PoolPlanOptions options = *PlanningOf(config_, plan, DType::kF32);
      for (const PoolTick& tick : PlanPoolStep(plan.pool(), options, batches, rank).ticks) {
        for (size_t number = 0; number < tick.layer_of.size(); ++number) {
          for (const ServerExchange& nano : tick.layer(number).nano) {
            pairs.back()[tick.tick.phase == PipelinePhase::kForward ? 0 : 1] +=
                nano.planned_seconds;
          }
        }
      }
    }
    return pairs;
  }

  TempFolder folder_;
  RunConfig config_;
  ClusterConfig cluster_;
};

TEST_F(SimulateRunTest, ServersComputeWhatTheRunsPlansSay) {
  config_.parallel.attention = SoftmaxExchange::kDisaggregated;
  config_.parallel.attention_tolerance = 0.02;
  struct Layout {
    MeshShape mesh;
    int virtual_stages = 1;
    std::vector<int64_t> layers_per_stage = {};
    std::vector<LayerKind> pattern = {LayerKind::kSoftmax};
  };
  const std::vector<LayerKind> hybrid = {LayerKind::kLightning, LayerKind::kSoftmax};
  for (const auto& [mesh, virtual_stages, layers, pattern] :
       {Layout{{1, 2, 1, 1}}, Layout{{2, 1, 1, 1}}, Layout{{2, 2, 1, 1}}, Layout{{1, 2, 2, 1}},
        Layout{{4, 1, 1, 1}}, Layout{{2, 1, 1, 1}, 2}, Layout{{2, 1, 2, 1}, 2},
        Layout{{2, 1, 1, 1}, 1, {1, 3}}, Layout{{2, 1, 1, 1}, 2, {}, hybrid},
        Layout{{2, 2, 1, 1}, 1, {}, hybrid}}) {
    for (const PingPong ping_pong : {PingPong::kOff, PingPong::kOn}) {
      SCOPED_TRACE(testing::Message() << "pp " << mesh.pp << " dp " << mesh.dp << " cp " << mesh.cp
                                      << " virtual stages " << virtual_stages
                                      << (ping_pong == PingPong::kOn ? ", two halves" : ""));
      config_.parallel.virtual_stages = virtual_stages;
      config_.parallel.layers_per_stage = layers;
      config_.model.layer_pattern = pattern;
      config_.parallel.mesh = mesh;
      config_.parallel.ping_pong = ping_pong;
      const auto run = SimulateRun(config_, cluster_, mesh.num_ranks(), 2);
      ASSERT_TRUE(run.ok()) << run.status();
      ASSERT_EQ(run->steps.size(), 2);
      double moved = 0;
      for (int64_t step = 0; step < 2; ++step) {
        const auto planned = PlannedPairs(mesh.num_ranks(), step);
        const SimulatedStep& simulated = run->steps[static_cast<size_t>(step)];
        ASSERT_EQ(simulated.busy.size(), planned.size());
        for (size_t r = 0; r < planned.size(); ++r) {
          const double expected = 1e-6 * planned[r][0] + 3e-6 * planned[r][1];
          EXPECT_NEAR(simulated.busy[r].attention, expected, 1e-9 * expected) << "rank " << r;
          moved += std::abs(planned[r][0] - planned[0][0]);
        }
      }
      EXPECT_GT(moved, 0) << "ranks alike show nothing";
    }
  }
}

// One rank: all there is, one after the other. Documents end where samples do.
TEST_F(SimulateRunTest, OneRankIsTheSumOfItsTerms) {
  const auto run = SimulateRun(config_, cluster_, 1, 3);
  ASSERT_TRUE(run.ok()) << run.status();
  const IndexedDataset dataset =
      *IndexedDataset::Open(config_.data.train, config_.model.vocab_size);
  SampleOrder order = *SampleOrder::Create(dataset.document_lengths(), 512, 1);
  const auto parameters = static_cast<double>(ShapeOf(config_.model).num_parameters);
  EXPECT_NEAR(run->update_seconds, 1e-9 * parameters, 1e-15);
  for (int64_t step = 0; step < 3; ++step) {
    double tokens = 0, pairs = 0;
    for (int64_t sample = 8 * step; sample < 8 * step + 8; ++sample) {
      for (const Piece& piece : order.Sample(sample)) {
        tokens += static_cast<double>(piece.length);
        pairs += CausalPairs(piece.length, piece.length);
      }
    }
    const double seconds = tokens * 1e-6 * (kLayers * (1 + 2 + 3 + 4) + 5 + 6 + 7 + 8) +
                           kLayers * pairs * 4e-6 + run->update_seconds;
    EXPECT_NEAR(run->steps[static_cast<size_t>(step)].seconds, seconds, 1e-9 * seconds);
  }
}

// Two replicas: the slower one, and the gradients of all parameters both ways.
TEST_F(SimulateRunTest, ReplicasWaitForTheSlowest) {
  config_.parallel.mesh = {1, 2, 1, 1};
  cluster_.shape.network = cluster_.shape.nvlink = {1e6, 0};
  const auto run = SimulateRun(config_, cluster_, 2, 1);
  ASSERT_TRUE(run.ok()) << run.status();
  const auto parameters = static_cast<double>(ShapeOf(config_.model).num_parameters);
  EXPECT_NEAR(run->update_seconds, parameters * (1e-9 + 2 * 4 * 0.5 / 1e6), 1e-9);
  const SimulatedStep& step = run->steps[0];
  ASSERT_EQ(step.busy.size(), 2);
  EXPECT_NE(step.busy[0].attention, step.busy[1].attention);
  EXPECT_NEAR(step.seconds,
              std::max(step.busy[0].compute(), step.busy[1].compute()) + run->update_seconds,
              1e-9 * step.seconds);
}

// Each replica updates half of the parameters, of which it gets the sum and gives the weights.
TEST_F(SimulateRunTest, ShardedOptimizer) {
  config_.parallel.mesh = {1, 2, 1, 1};
  config_.parallel.zero = ShardingStage::kOptimizer;
  const auto parameters = static_cast<double>(ShapeOf(config_.model).num_parameters);
  const auto free = SimulateRun(config_, cluster_, 2, 1);
  ASSERT_TRUE(free.ok()) << free.status();
  // What is summed on all ranks, and units that are filled up, are little.
  EXPECT_NEAR(free->update_seconds, 0.5e-9 * parameters, 0.01e-9 * parameters);
  cluster_.shape.network = cluster_.shape.nvlink = {1e6, 0};
  EXPECT_NEAR(SimulateRun(config_, cluster_, 2, 1)->update_seconds - free->update_seconds,
              2 * 4 * 0.5 * parameters / 1e6, 0.01 * 4 * parameters / 1e6);
  // In bf16 weights are half of that.
  config_.runtime.device = Device::kCuda;
  EXPECT_NEAR(SimulateRun(config_, cluster_, 2, 1)->update_seconds - free->update_seconds,
              (4 + 2) * 0.5 * parameters / 1e6, 0.01 * 4 * parameters / 1e6);
}

// Stages as the config says, which with virtual stages are those of interleaved 1F1B.
TEST_F(SimulateRunTest, StagesOfTheConfig) {
  const double alone = SimulateRun(config_, cluster_, 1, 1)->steps[0].busy[0].compute();
  config_.parallel.mesh = {2, 1, 1, 1};
  const auto run = [this](int virtual_stages, std::vector<int64_t> layers) {
    config_.parallel.virtual_stages = virtual_stages;
    config_.parallel.layers_per_stage = std::move(layers);
    const auto result = SimulateRun(config_, cluster_, 2, 1);
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  };
  const RunSimulation one = run(1, {}), two = run(2, {}), uneven = run(1, {3, 1});
  EXPECT_EQ(one.layout, "pp 2 dp 1 cp 1 tp 1");
  EXPECT_EQ(two.layout, "pp 2 dp 1 cp 1 tp 1, virtual stages 2");
  for (const RunSimulation& each : {one, two, uneven}) {
    const std::vector<SimBusy>& busy = each.steps[0].busy;
    EXPECT_NEAR(busy[0].compute() + busy[1].compute(), alone, 1e-9 * alone);
  }
  // Equal layers, and embedding or head beside them, whichever they are.
  EXPECT_NEAR(two.steps[0].busy[0].compute(), one.steps[0].busy[0].compute(), 1e-9 * alone);
  EXPECT_NEAR(uneven.steps[0].busy[0].attention, 3 * uneven.steps[0].busy[1].attention,
              1e-9 * alone);
  EXPECT_LT(IdleShare(two.steps[0]), IdleShare(one.steps[0]) - 0.02);
}

// Context parallelism: half of the work each, keys and values gathered twice and their gradients
// scattered, copied on both sides.
TEST_F(SimulateRunTest, ContextParallelRanksGatherAndCopy) {
  const double alone = SimulateRun(config_, cluster_, 1, 1)->steps[0].seconds;
  config_.parallel.mesh = {1, 1, 2, 1};
  cluster_.shape.measured.parameter = 0;
  const double free = SimulateRun(config_, cluster_, 2, 1)->steps[0].seconds;
  EXPECT_NEAR(free / alone, 0.5, 0.01);
  cluster_.shape.copy_bytes_per_second = 1e6;
  const double copying = SimulateRun(config_, cluster_, 2, 1)->steps[0].seconds;
  // Of 8 micro-batches of 512 tokens, 256 of which are the rank's own, 128 numbers each.
  EXPECT_NEAR(copying - free, kLayers * 8 * 3 * (512 + 256) * 128 * 4 / 1e6, 1e-6 * copying);
}

TEST_F(SimulateRunTest, Refusals) {
  config_.parallel.mesh = {1, 1, 2, 1};
  config_.parallel.attention = SoftmaxExchange::kRing;
  EXPECT_THAT(std::string(SimulateRun(config_, cluster_, 2, 1).status().message()),
              HasSubstr("gather"));
  config_.parallel.attention = SoftmaxExchange::kGather;
  config_.parallel.zero = ShardingStage::kGradients;
  EXPECT_THAT(std::string(SimulateRun(config_, cluster_, 2, 1).status().message()),
              HasSubstr("parallel.zero"));
  config_.parallel.zero = ShardingStage::kNone;
  config_.data.train = folder_.Path("absent");
  EXPECT_FALSE(SimulateRun(config_, cluster_, 2, 1).ok());
}

}  // namespace
}  // namespace evenkeel
