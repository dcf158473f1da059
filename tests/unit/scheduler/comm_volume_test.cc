// Formulas of what a rank sends, worked out by hand where the dtypes differ: bf16 beside float32.
// tests/mpi/layouts holds them against real runs, where there is one dtype.
#include "scheduler/comm_volume.h"

#include <gtest/gtest.h>

#include <vector>

#include "models/model_shape.h"
#include "scheduler/unit_traffic.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::TinyConfig;

constexpr double kElement = 2, kWide = 4;

struct StepCase {
  ModelConfig model;
  ModelPart part;
  RankLayout layout;
  RecomputePlan recompute = RecomputePlan::kNone;
  std::vector<std::vector<int64_t>> micro_batches = {{100}};

  CommVolume Volume() const {
    const ModelShape shape = ShapeOf(model, part);
    std::vector<MicroBatchTokens> tokens;
    for (const auto& lengths : micro_batches) tokens.push_back(CountTokens(layout, lengths));
    return StepVolume(shape, layout,
                      ComputeShapeOf(Device::kCuda, DType::kBF16, shape.vocab_size, layout.mesh.tp),
                      recompute, tokens);
  }
  double Bytes(const char* axis, const char* operation) const {
    const CommVolume volume = Volume();
    const auto found = volume.find({axis, operation});
    return found == volume.end() ? 0 : found->second;
  }
};

// Heads 4, width 16, head size 4.
StepCase CaseOf(LayerKind kind, const MeshShape& mesh, const MeshCoord& coord = {}) {
  StepCase run;
  run.model = TinyConfig({kind});
  run.part = WholeModel(run.model);
  run.part.tp = mesh.tp;
  run.part.tp_rank = coord.tp;
  run.layout.mesh = mesh;
  run.layout.coord = coord;
  return run;
}

TEST(StepVolume, OfOneRankIsNothing) {
  EXPECT_TRUE(CaseOf(LayerKind::kSoftmax, {1, 1, 1, 1}).Volume().empty());
}

TEST(StepVolume, OfTensorParallelism) {
  StepCase run = CaseOf(LayerKind::kSoftmax, {1, 1, 1, 2}, {0, 0, 0, 1});
  run.micro_batches = {{70, 31}};  // 101 tokens: 50 and 51
  const double row = 16 * kElement;
  EXPECT_EQ(run.Bytes("tp", "all-gather"), (6 * 3 + 2) * 51 * row + 101 * 3 * 4);
  EXPECT_EQ(run.Bytes("tp", "reduce-scatter"), (4 * 3 + 2) * 50 * row);
  // Gains of the norms of 3 layers and the head, and the norm of the gradient.
  EXPECT_EQ(run.Bytes("tp", "all-reduce"), 7 * 16 * kWide + 8);
  run.recompute = RecomputePlan::kMlp;
  EXPECT_EQ(run.Bytes("tp", "reduce-scatter"), (5 * 3 + 2) * 50 * row);
  for (const auto recompute : {RecomputePlan::kAllButAttention, RecomputePlan::kLayer}) {
    run.recompute = recompute;
    EXPECT_EQ(run.Bytes("tp", "all-gather"), (7 * 3 + 2) * 51 * row + 101 * 3 * 4);
  }
}

TEST(StepVolume, OfEmptyMicroBatches) {
  StepCase run = CaseOf(LayerKind::kSoftmax, {1, 1, 2, 2});
  const CommVolume one = run.Volume();
  run.micro_batches = {{}, {100}, {}};
  EXPECT_EQ(run.Volume(), one);
}

TEST(StepVolume, OfSoftmaxAttention) {
  StepCase run = CaseOf(LayerKind::kSoftmax, {1, 1, 3, 1}, {0, 0, 1, 0});
  run.micro_batches = {{100}};
  run.layout.context.split = SequenceSplit::kContiguous;  // 34, 33, 33
  const double kv = 3 * 4 * (4 + 4);                      // of 3 layers
  EXPECT_EQ(run.Bytes("cp", "all-gather"), 2 * 2 * 33 * kv * kElement);
  EXPECT_EQ(run.Bytes("cp", "reduce-scatter"), 67 * kv * kWide);
  run.layout.context.softmax = SoftmaxExchange::kRing;
  EXPECT_EQ(run.Bytes("cp", "send"), kv * (2 * 67 * kElement + 100 * kWide));
  run.recompute = RecomputePlan::kAllButAttention;
  EXPECT_EQ(run.Bytes("cp", "send"), kv * (2 * 67 * kElement + 100 * kWide));
  run.recompute = RecomputePlan::kLayer;
  EXPECT_EQ(run.Bytes("cp", "send"), kv * (3 * 67 * kElement + 100 * kWide));

  StepCase heads = CaseOf(LayerKind::kSoftmax, {1, 1, 4, 1}, {0, 0, 0, 0});
  heads.model.num_kv_heads = 2;
  heads.layout.context.softmax = SoftmaxExchange::kUlysses;
  // 25 tokens each; a query head and a repeated key/value head for every rank.
  const double inputs = (4 + 4 + 4) * kElement, out = 4 * kElement, lse = kWide;
  EXPECT_EQ(heads.Bytes("cp", "all-to-all"),
            3 * (75 * inputs + 75 * (out + lse) + 75 * (inputs + 2 * out + lse) + 75 * inputs));
}

TEST(StepVolume, OfLinearAttentionKnowsNoLength) {
  for (const auto states : {StateExchange::kGather, StateExchange::kScan}) {
    StepCase run = CaseOf(LayerKind::kLightning, {1, 1, 3, 1}, {0, 0, 1, 0});
    run.model.lrpe_layers = {};
    run.layout.context.split = SequenceSplit::kContiguous;
    run.layout.context.states = states;
    const bool gathers = states == StateExchange::kGather;
    const char* const operation = gathers ? "all-gather" : "send";
    run.micro_batches = {{100}};
    // One state on, one gradient back; a gather tells both others.
    const double one = 3 * 4 * 4 * 4 * kWide * (gathers ? 2 : 1);
    EXPECT_EQ(run.Bytes("cp", operation), 2 * one);
    run.micro_batches = {{100000}};
    EXPECT_EQ(run.Bytes("cp", operation), 2 * one);
    run.recompute = RecomputePlan::kLayer;
    EXPECT_EQ(run.Bytes("cp", operation), 3 * one);
    // A document that lies within the rank costs nothing.
    run.micro_batches = {{33, 34, 33}};
    EXPECT_LE(run.Bytes("cp", operation), 3 * one);
  }
}

TEST(StepVolume, OfReplicasByShardingStage) {
  StepCase run = CaseOf(LayerKind::kSoftmax, {1, 4, 1, 1});
  run.micro_batches = {{5}, {7}, {}};
  const auto elements = static_cast<double>(ShapeOf(run.model, run.part).num_parameters);
  EXPECT_EQ(run.Bytes("data", "all-reduce"), 1.5 * elements * kWide);
  EXPECT_EQ(run.Volume().size(), 1);
  run.part.unit_multiple = 256;
  const ModelShape shape = ShapeOf(run.model, run.part);
  const auto padded = static_cast<double>(shape.num_parameters);
  EXPECT_GT(padded, elements);
  const double norm = 1.5 * 8;
  run.layout.sharding = ShardingStage::kOptimizer;
  EXPECT_EQ(run.Bytes("data", "all-gather"), 3 * padded / 4 * kElement);
  EXPECT_EQ(run.Bytes("data", "reduce-scatter"), 3 * padded / 4 * kWide);
  EXPECT_EQ(run.Bytes("data", "all-reduce"), norm);
  run.layout.sharding = ShardingStage::kGradients;
  EXPECT_EQ(run.Bytes("data", "all-gather"), 3 * padded / 4 * kElement);
  EXPECT_EQ(run.Bytes("data", "reduce-scatter"), 3 * 3 * padded / 4 * kWide);
  run.layout.sharding = ShardingStage::kParameters;
  EXPECT_EQ(run.Bytes("data", "reduce-scatter"), 3 * 3 * padded / 4 * kWide);
  EXPECT_LE(run.Bytes("data", "all-gather"), 2 * 3 * 3 * padded / 4 * kElement);
  // Units that are still there from the pass before are not gathered again.
  EXPECT_GT(run.Bytes("data", "all-gather"), 2 * 3 * padded / 4 * kElement);
}

TEST(StepVolume, OfAPipeline) {
  StepCase run = CaseOf(LayerKind::kSoftmax, {3, 1, 1, 1}, {1, 0, 0, 0});
  run.part.chunks = {{1, 2}};
  run.part.is_first = run.part.is_last = false;
  run.micro_batches = {{5}, {7, 1}, {}};
  EXPECT_EQ(run.Bytes("pp forward", "send"), 13 * 16 * kElement);
  EXPECT_EQ(run.Bytes("pp backward", "send"), 13 * 16 * kElement);
  run.part.is_last = true;
  run.layout.coord.pp = 2;
  EXPECT_EQ(run.Bytes("pp forward", "send"), 0);
  EXPECT_EQ(run.Bytes("pp backward", "send"), 13 * 16 * kElement);
  EXPECT_NEAR(run.Bytes("pp", "all-reduce"), 2 * 8 * 2 / 3.0, 1e-12);
}

TEST(StreamRows, AreAllTokensTogether) {
  for (const int64_t tokens : {0, 1, 2, 511, 512, 513, 1300}) {
    for (const int ranks : {1, 2, 3, 8}) {
      int64_t sum = 0;
      for (int rank = 0; rank < ranks; ++rank) sum += StreamRows(tokens, 512, ranks, rank);
      EXPECT_EQ(sum, tokens);
    }
  }
}

TEST(CountTokens, CountsPiecesOfCutDocuments) {
  RankLayout layout;
  layout.mesh.cp = 2;
  layout.context.split = SequenceSplit::kContiguous;
  const MicroBatchTokens none = CountTokens(layout, {});
  EXPECT_EQ(none.all, 0);
  EXPECT_EQ(none.rows, (std::vector<int64_t>{0, 0}));
  // The second of three documents is cut.
  MicroBatchTokens tokens = CountTokens(layout, {3, 4, 3});
  EXPECT_EQ(tokens.rows, (std::vector<int64_t>{5, 5}));
  EXPECT_EQ(tokens.pieces_before, 0);
  EXPECT_EQ(tokens.pieces_after, 1);
  layout.coord.cp = 1;
  tokens = CountTokens(layout, {3, 4, 3});
  EXPECT_EQ(tokens.pieces_before, 1);
  EXPECT_EQ(tokens.pieces_after, 0);
  EXPECT_EQ(tokens.all_pieces_before, 1);
  EXPECT_EQ(tokens.all_pieces_after, 1);
}

}  // namespace
}  // namespace evenkeel
