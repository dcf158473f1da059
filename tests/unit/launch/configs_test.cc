// Every file in configs/ is good as it is, and has the number of parameters that was published.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "launch/run_config.h"
#include "models/model_shape.h"

namespace evenkeel {
namespace {

// Billions of parameters: the TransNormerLLM models' are tied, Llama 3's as its authors count.
const std::map<std::string, int64_t> kParameters = {
    {"llama3_8b.yaml", 8030261248},          {"llama_34b.yaml", 33743970304},
    {"transnormerllm_385m.yaml", 398984192}, {"transnormerllm_1b.yaml", 1020266496},
    {"transnormerllm_3b.yaml", 2911111680},  {"transnormerllm_7b.yaml", 6836719616},
};

TEST(ConfigsTest, EveryFileIsGoodAndTheLargeOnesHaveThePublishedSize) {
  int seen = 0, large = 0;
  for (const auto& entry : std::filesystem::directory_iterator(EK_CONFIGS_FOLDER)) {
    if (entry.is_directory()) continue;  // clusters/ has files of another kind
    const std::string name = entry.path().filename();
    const auto config = ReadRunConfig(entry.path(), {});
    ASSERT_TRUE(config.ok()) << config.status();
    ++seen;
    const auto expected = kParameters.find(name);
    if (expected == kParameters.end()) continue;
    ++large;
    EXPECT_EQ(ShapeOf(config->model).num_parameters, expected->second) << name;
  }
  EXPECT_EQ(large, static_cast<int>(kParameters.size()));
  EXPECT_GE(seen, large + 4);
}

}  // namespace
}  // namespace evenkeel
