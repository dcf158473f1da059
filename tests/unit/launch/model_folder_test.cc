#include "launch/model_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/base/exit_code.h"
#include "tests/unit/launch/small_run.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

// A run folder with checkpoints of steps 1 and 2.
class ModelFolder : public testing::Test {
 protected:
  ModelFolder() {
    SmallRun run(1);
    auto store = *CheckpointStore::Open(folder_ / "checkpoints", CheckpointAccess::kReadWrite);
    for (int64_t step : {1, 2}) {
      run.Train(step);
      EXPECT_TRUE(Save(run, &store, 5).ok());
    }
  }

  std::string Step(int step) const {
    return folder_ / ("checkpoints/step-0000000" + std::to_string(step));
  }

  TestFolder folder_;
};

TEST_F(ModelFolder, OfARunIsItsNewestCheckpoint) {
  const auto found = FindModelFolder(folder_.path());
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, Step(2));
}

TEST_F(ModelFolder, OfARunWithADamagedCheckpointIsTheOneBefore) {
  std::filesystem::remove(Step(2) + "/model.safetensors");
  const auto found = FindModelFolder(folder_.path());
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, Step(1));
}

TEST_F(ModelFolder, OfACheckpointIsItself) {
  EXPECT_EQ(*FindModelFolder(Step(1)), Step(1));
  // But a damaged one is refused, even though it has a config.json.
  std::filesystem::resize_file(Step(1) + "/model.safetensors", 100);
  const absl::Status status = FindModelFolder(Step(1)).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors is damaged: 100 bytes"));
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
}

TEST_F(ModelFolder, OfACheckpointIsReadToTheLastBit) {
  const std::string file = Step(1) + "/model.safetensors";
  std::string bytes = ReadBytes(file);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteBytes(file, bytes);
  EXPECT_THAT(std::string(FindModelFolder(Step(1)).status().message()),
              HasSubstr("model.safetensors is damaged: XXH3-128 is "));
}

TEST_F(ModelFolder, OfHuggingFaceNeedsOnlyAConfig) {
  const std::string path = folder_ / "hf";
  std::filesystem::create_directory(path);
  WriteBytes(path + "/config.json", "{}");
  EXPECT_EQ(*FindModelFolder(path), path);
}

TEST_F(ModelFolder, IsRefusedByNameWhereThereIsNone) {
  for (const std::string& path : {folder_ / "nothing", folder_ / "checkpoints", std::string()}) {
    const absl::Status status = FindModelFolder(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << path;
    EXPECT_EQ(status.message(),
              path +
                  ": no model here: neither a run folder (with checkpoints/), nor a checkpoint "
                  "(manifest.json), nor a Hugging Face folder (config.json)");
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
  }
}

TEST_F(ModelFolder, OfARunWithoutCheckpointsIsRefused) {
  const TestFolder empty;
  std::filesystem::create_directory(empty / "checkpoints");
  const absl::Status status = FindModelFolder(empty.path()).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
  EXPECT_THAT(std::string(status.message()), HasSubstr(empty.path()));
}

}  // namespace
}  // namespace evenkeel
