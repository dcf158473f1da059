// What `evenkeel simulate` is made of: cluster files, batches of documents, layouts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "launch/cluster_config.h"
#include "launch/document_batches.h"
#include "launch/simulate_study.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class SimulateFiles : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = ::testing::TempDir() + "/" + name;
    std::ofstream(path) << text;
    return path;
  }
};

TEST(ClusterConfig, FilesInTheRepository) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(EK_CONFIGS_FOLDER) + "/clusters")) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    const auto config = ReadClusterConfig(entry.path().string(), {});
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_NE(config->shape.name, "");
    EXPECT_GT(config->shape.network.bytes_per_second, 1e6) << entry.path();
  }
  EXPECT_GE(files, 2);
}

TEST_F(SimulateFiles, ClusterUnitsAndErrors) {
  const std::string path =
      Write("cluster.yaml", "name: x\nnetwork: {gb_s: 50, latency_us: 10}\nmemory_gb: 140\n");
  const auto config = ReadClusterConfig(path, {"attention.forward_tflops=300"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_DOUBLE_EQ(config->shape.network.bytes_per_second, 50e9);
  EXPECT_DOUBLE_EQ(config->shape.network.latency, 1e-5);
  EXPECT_DOUBLE_EQ(config->shape.memory_bytes, 140e9);
  EXPECT_DOUBLE_EQ(config->shape.attention_forward_flops, 300e12);
  EXPECT_FALSE(config->attention.has_value());
  EXPECT_THAT(std::string(ReadClusterConfig(path, {"network.gbs=1"}).status().message()),
              HasSubstr("gb_s"));
  EXPECT_THAT(
      std::string(ReadClusterConfig(path, {"measured.pre_forward_s=1e-6"}).status().message()),
      HasSubstr("attention_backward_s"));
  EXPECT_FALSE(ReadClusterConfig(path, {"attention.grid=absent.json"}).ok());
}

TEST_F(SimulateFiles, LengthsAndWhatIsWrongWithThem) {
  EXPECT_THAT(*ReadLengths(Write("good.json", "[3, 1, 70000]")), ElementsAre(3, 1, 70000));
  for (const char* text : {"[]", "{}", "[1, 0]", "[1.5]", "[\"2\"]", "[1"}) {
    const auto lengths = ReadLengths(Write("bad.json", text));
    EXPECT_FALSE(lengths.ok()) << text;
    EXPECT_THAT(std::string(lengths.status().message()), HasSubstr("bad.json")) << text;
  }
}

TEST(DocumentBatches, Recipes) {
  constexpr int64_t kLong = 70000;
  const std::vector<int64_t> lengths = {10, kLong, 20, 30, 40};
  EXPECT_THAT(PrepareLengths(lengths, LengthRecipe::kAsIs, 1 << 17, 1),
              ElementsAre(10, kLong, 20, 30, 40));
  // Long ones first and four times, one of them (30 %) as long as a sample; half of the short ones.
  std::vector<int64_t> prolong = PrepareLengths(lengths, LengthRecipe::kProLong, 1 << 17, 1);
  ASSERT_THAT(prolong, SizeIs(6));
  std::sort(prolong.begin(), prolong.begin() + 4);
  EXPECT_THAT(prolong, ElementsAre(kLong, kLong, kLong, 1 << 17, 10, 20));
  std::vector<int64_t> pretrain = PrepareLengths(lengths, LengthRecipe::kPretrain, 1 << 17, 1);
  EXPECT_EQ(pretrain, PrepareLengths(lengths, LengthRecipe::kPretrain, 1 << 17, 1));
  std::sort(pretrain.begin(), pretrain.end());
  EXPECT_THAT(pretrain, ElementsAre(20, 40, 2 * kLong, 2 * kLong, 2 * kLong, 2 * kLong));
}

TEST(DocumentBatches, CutWhereSamplesEnd) {
  // Samples of 8 tokens, two a batch: 5 3 | 7 1, then 4 of the last document and the first again.
  EXPECT_THAT(CutBatches({5, 10, 5}, 8, 2, 2),
              ElementsAre(ElementsAre(5, 3, 7, 1), ElementsAre(4, 4, 1, 7)));
}

SimCase SmallCase() {
  SimCase study;
  study.model.vocab_size = 1000;
  study.model.hidden_size = 512;
  study.model.intermediate_size = 1024;
  study.model.num_layers = 4;
  study.model.num_heads = 4;
  study.cluster.shape.memory_bytes = 1e12;
  study.cluster.shape.network = study.cluster.shape.nvlink = {1e10, 1e-6};
  study.cluster.shape.matmul_flops = 1e13;
  study.cluster.shape.attention_forward_flops = study.cluster.shape.attention_backward_flops = 1e13;
  study.cluster.shape.copy_bytes_per_second = 1e12;
  study.documents = {4096, 300, 700, 1500, 4000, 100, 100, 2000, 3000, 50};
  study.gpus = 8;
  study.tp = 2;
  study.context = 4096;
  study.samples = 4;
  study.batches = 5;
  return study;
}

TEST(SimulateStudy, LayoutsUseAllRanks) {
  SimCase study = SmallCase();
  study.pp = {1, 2, 3};
  for (SimSystem system : {SimSystem::kDisaggregated, SimSystem::kBalanced, SimSystem::kInOrder}) {
    const auto layouts = LayoutsOf(study, system);
    ASSERT_TRUE(layouts.ok()) << layouts.status();
    EXPECT_FALSE(layouts->empty());
    for (const SimLayout& layout : *layouts) {
      EXPECT_EQ(layout.pools * layout.pp * layout.dp * layout.cp, 4);
      EXPECT_TRUE(layout.fits);
      EXPECT_GE(layout.micro_batches, layout.pp);
      EXPECT_NE(layout.pp, 3);
    }
  }
  // All dp and cp: one stage 1 x 4, 2 x 2, 4 x 1, two stages 1 x 2 and 2 x 1.
  study.micro_batches = 2;
  EXPECT_THAT(*LayoutsOf(study, SimSystem::kBalanced), SizeIs(5));
  study.tp = 3;
  EXPECT_FALSE(LayoutsOf(study, SimSystem::kBalanced).ok());
}

TEST(SimulateStudy, MemoryRulesLayoutsOut) {
  SimCase study = SmallCase();
  const auto free = LayoutsOf(study, SimSystem::kDisaggregated);
  ASSERT_THAT(*free, SizeIs(1));
  EXPECT_EQ(free->front().micro_batches, 1);
  // Too little for a micro-batch of everything: more of them, each smaller.
  study.cluster.shape.memory_bytes = free->front().memory_bytes * 0.99;
  const auto tight = LayoutsOf(study, SimSystem::kDisaggregated);
  ASSERT_THAT(*tight, SizeIs(1));
  EXPECT_GT(tight->front().micro_batches, 1);
  EXPECT_TRUE(tight->front().fits);
  EXPECT_LT(tight->front().memory_bytes, free->front().memory_bytes);
  study.cluster.shape.memory_bytes = 1;
  const auto none = LayoutsOf(study, SimSystem::kDisaggregated);
  ASSERT_THAT(*none, SizeIs(1));
  EXPECT_FALSE(none->front().fits);
}

TEST(SimulateStudy, VirtualStagesAreTriedWhereTheyDivideTheLayers) {
  SimCase study = SmallCase();
  study.pp = {1, 2, 4};
  study.virtual_stages = {1, 2, 3};
  study.micro_batches = 4;
  for (SimSystem system : {SimSystem::kDisaggregated, SimSystem::kBalanced}) {
    const auto layouts = LayoutsOf(study, system);
    ASSERT_TRUE(layouts.ok()) << layouts.status();
    std::set<std::pair<int, int>> tried;
    for (const SimLayout& layout : *layouts) tried.insert({layout.pp, layout.virtual_stages});
    // Four layers: 2 x 2 stages of one, not 4 x 2.
    EXPECT_THAT(tried,
                ElementsAre(std::pair(1, 1), std::pair(2, 1), std::pair(2, 2), std::pair(4, 1)));
  }
}

// What a rank keeps of passes, in units of what one of all its layers keeps:
// docs/disaggregation.md, "Pipelines". The rank that needs most is the first one.
TEST(SimulateStudy, MemoryOfVirtualStages) {
  SimCase study = SmallCase();
  study.tp = 1;
  study.gpus = 4;
  study.cp = 1;
  study.samples = 8;
  study.micro_batches = 8;
  study.pp = {4};
  // The difference that 16 layers more, four a rank, and as many tokens more make: neither weights
  // nor what a pass keeps whatever its layers.
  const auto kept = [&study](SimSystem system, int64_t virtual_stages) {
    study.virtual_stages = {virtual_stages};
    double sum = 0;
    for (const auto& [layers, context, sign] :
         {std::tuple(32, 1 << 13, 1), {32, 1 << 12, -1}, {16, 1 << 13, -1}, {16, 1 << 12, 1}}) {
      study.model.num_layers = layers;
      study.context = context;
      const auto layouts = LayoutsOf(study, system);
      EXPECT_THAT(*layouts, SizeIs(1));
      sum += sign * layouts->front().memory_bytes;
    }
    return sum;
  };
  const double unit = kept(SimSystem::kInOrder, 1) / 4;
  EXPECT_GT(unit, 0);
  EXPECT_NEAR(kept(SimSystem::kDisaggregated, 1) / unit, 7, 1e-9);
  for (SimSystem system : {SimSystem::kDisaggregated, SimSystem::kInOrder}) {
    EXPECT_NEAR(kept(system, 2) / unit, 5.5, 1e-9);
    EXPECT_NEAR(kept(system, 4) / unit, 4.75, 1e-9);
  }
}

// Keys and values that cp ranks gather are kept with the pass: of the layers of its chunk.
TEST(SimulateStudy, MemoryOfGatheredKeys) {
  SimCase study = SmallCase();
  study.model.num_layers = 8;
  study.tp = 1;
  study.pp = {2};
  study.micro_batches = 4;
  const auto bytes = [&study](int64_t virtual_stages, int64_t element_bytes) {
    study.virtual_stages = {virtual_stages};
    study.element_bytes = element_bytes;
    const auto layouts = LayoutsOf(study, SimSystem::kBalanced);
    for (const SimLayout& layout : *layouts) {
      if (layout.cp == 4) return layout.memory_bytes;
    }
    return 0.0;
  };
  // Of a micro-batch, with room for packing; those of three ranks are gathered.
  const double tokens = 1228;  // 1.2 x 1024
  const double layer = tokens * 3 * 2 * 512;
  // Bytes of an element count for what is gathered alone. Two passes of four layers; with two
  // stages a rank five of two.
  EXPECT_DOUBLE_EQ(bytes(1, 4) - bytes(1, 2), 2 * 2 * 4 * layer);
  EXPECT_DOUBLE_EQ(bytes(2, 4) - bytes(2, 2), 2 * 5 * 2 * layer);
  // The first rank's second stage gathers nothing. Its passes (F0a F1a F0b F1b F2a B0b F3a B1b F2b
  // B0a F3b B1a, then backward ones) take five slots, four of which see one of the first stage.
  const std::vector<LayerKind> half(4, LayerKind::kLightning);
  study.model.layer_pattern.assign(4, LayerKind::kSoftmax);
  study.model.layer_pattern.insert(study.model.layer_pattern.end(), half.begin(), half.end());
  EXPECT_DOUBLE_EQ(bytes(2, 4) - bytes(2, 2), 2 * 4 * 2 * layer);
}

// With as few micro-batches as stages the bubble is large, and stages a rank divide it.
TEST(SimulateStudy, VirtualStagesShrinkTheBubble) {
  SimCase study = SmallCase();
  study.pp = {4};
  study.model.num_layers = 16;
  study.micro_batches = 4;
  ThreadPool threads(2);
  study.virtual_stages = {1};
  const auto one = RunBest(study, SimSystem::kBalanced, &threads);
  study.virtual_stages = {1, 4};
  const auto four = RunBest(study, SimSystem::kBalanced, &threads);
  ASSERT_TRUE(one.ok() && four.ok());
  EXPECT_EQ(four->layout.virtual_stages, 4);
  EXPECT_LT(four->seconds, 0.8 * one->seconds);
  EXPECT_LT(four->idle, one->idle - 0.1);
}

TEST(SimulateStudy, TheBestLayoutIsTheBest) {
  SimCase study = SmallCase();
  study.pp = {1, 2};
  study.search_batches = study.batches;
  ThreadPool threads(2);
  const auto best = RunBest(study, SimSystem::kBalanced, &threads);
  ASSERT_TRUE(best.ok()) << best.status();
  const auto layouts = LayoutsOf(study, SimSystem::kBalanced);
  for (const SimLayout& layout : *layouts) {
    EXPECT_GE(RunLayout(study, layout, &threads)->seconds, best->seconds);
  }
  EXPECT_THAT(best->step_seconds, SizeIs(5));
  const auto some = RunLayout(study, best->layout, &threads, 2);
  EXPECT_THAT(some->step_seconds,
              ElementsAre(best->step_seconds[0], best->step_seconds[2], best->step_seconds[4]));
  EXPECT_NEAR(std::accumulate(best->step_seconds.begin(), best->step_seconds.end(), 0.0) / 5,
              best->seconds, 1e-12);
  EXPECT_NEAR(best->tokens_per_second * best->seconds * 8, 4 * 4096, 1e-6);
}

TEST(SimulateStudy, PoolsShareABatch) {
  SimCase study = SmallCase();
  study.pools = {2};
  ThreadPool threads(1);
  const auto two = RunBest(study, SimSystem::kDisaggregated, &threads);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->layout.cp, 2);
  // The slower half, alone on half of the ranks.
  study.pools = {1};
  study.gpus = 4;
  study.samples = 2;
  study.batches = 10;
  const auto halves = RunBest(study, SimSystem::kDisaggregated, &threads);
  ASSERT_TRUE(halves.ok());
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(two->step_seconds[i],
                std::max(halves->step_seconds[2 * i], halves->step_seconds[2 * i + 1]), 1e-12);
  }
}

}  // namespace
}  // namespace evenkeel
