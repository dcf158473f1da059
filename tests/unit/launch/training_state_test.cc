#include "launch/training_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "models/hugging_face.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/comm/self_communicator.h"
#include "tests/unit/launch/small_run.h"

namespace evenkeel {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

CheckpointStore OpenStore(const TestFolder& folder) {
  auto store = CheckpointStore::Open(folder / "checkpoints", CheckpointAccess::kReadWrite);
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

absl::StatusOr<bool> Restore(const CheckpointStore* store, SmallRun& run,
                             const TrainingProgress& expected, bool fallback = true) {
  const auto comm = MakeSelfCommunicator();
  return RestoreTraining(run.runtime.context, *comm, Replicated(run.model->config()), store,
                         fallback, expected, &run.progress, *run.model, run.optimizer);
}

TEST(TrainingState, RestoresEveryBit) {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const TestFolder folder;
    CheckpointStore store = OpenStore(folder);
    SmallRun saved(1, dtype);
    saved.Train(4);
    ASSERT_TRUE(Save(saved, &store, 2).ok());

    SmallRun restored(2, dtype);
    ASSERT_NE(restored.Bytes(), saved.Bytes());
    const auto found = Restore(&store, restored, SmallRun(1).progress);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_TRUE(*found);
    EXPECT_EQ(restored.Bytes(), saved.Bytes());
    EXPECT_EQ(restored.progress.step, 4);
    EXPECT_EQ(restored.progress.samples, 32);
    EXPECT_EQ(restored.progress.tokens, 2048);
    EXPECT_EQ(restored.progress.seed, 3);
    EXPECT_EQ(restored.progress.sequence_length, 64);
    EXPECT_EQ(restored.progress.data_fingerprint, "a5");

    // And both go on alike.
    saved.Train(5);
    restored.Train(5);
    EXPECT_EQ(restored.Bytes(), saved.Bytes());
  }
}

TEST(TrainingState, EveryKindOfModelRoundTrips) {
  for (const auto& named : testing_support::AllTinyModels()) {
    const TestFolder folder;
    CheckpointStore store = OpenStore(folder);
    SmallRun saved(1, DType::kF64, named.config), restored(2, DType::kF64, named.config);
    saved.Train(1);
    ASSERT_TRUE(Save(saved, &store, 1).ok());
    const auto found = Restore(&store, restored, saved.progress);
    ASSERT_TRUE(found.ok() && *found) << named.name << " " << found.status();
    EXPECT_EQ(restored.Bytes(), saved.Bytes()) << named.name;
  }
}

TEST(TrainingState, TakesTheNewestAndKeepsAsManyAsAsked) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder);
  SmallRun run(1);
  for (int64_t step = 1; step <= 4; ++step) {
    run.Train(step);
    ASSERT_TRUE(Save(run, &store, 2).ok());
  }
  EXPECT_EQ(*store.Steps(), (std::vector<int64_t>{3, 4}));
  SmallRun restored(2);
  ASSERT_TRUE(*Restore(&store, restored, run.progress));
  EXPECT_EQ(restored.progress.step, 4);
  EXPECT_EQ(restored.Bytes(), run.Bytes());
}

TEST(TrainingState, WithoutACheckpointStartsAtZero) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder);
  for (const CheckpointStore* from : {static_cast<const CheckpointStore*>(&store),
                                      static_cast<const CheckpointStore*>(nullptr)}) {
    SmallRun run(1);
    const std::string before = run.Bytes();
    TrainingProgress expected = run.progress;
    expected.step = 99;  // where it left off counts for nothing
    const auto found = Restore(from, run, expected);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_FALSE(*found);
    EXPECT_EQ(run.progress.step, 0);
    EXPECT_EQ(run.progress.samples, 0);
    EXPECT_EQ(run.progress.seed, 3);
    EXPECT_EQ(run.Bytes(), before);
  }
}

TEST(TrainingState, RefusesAnotherRunsCheckpoint) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder);
  SmallRun saved(1);
  saved.Train(1);
  ASSERT_TRUE(Save(saved, &store, 1).ok());
  const std::string where = folder / "checkpoints/step-00000001";
  const struct {
    void (*change)(TrainingProgress&);
    const char* message;
  } cases[] = {
      {[](TrainingProgress& p) { p.seed = 4; },
       ": the checkpoint was made with seed 3, this run has 4: use another run folder, or set it "
       "back"},
      {[](TrainingProgress& p) { p.sequence_length = 128; },
       ": the checkpoint was made with data.sequence_length 64, this run has 128: use another run "
       "folder, or set it back"},
      {[](TrainingProgress& p) { p.data_fingerprint = "b6"; },
       ": the checkpoint was made with training data of fingerprint a5, this run has b6: use "
       "another run folder, or set it back"},
  };
  for (const auto& c : cases) {
    SmallRun run(2);
    TrainingProgress expected = run.progress;
    c.change(expected);
    const auto found = Restore(&store, run, expected);
    ASSERT_FALSE(found.ok());
    EXPECT_THAT(std::string(found.status().message()), EndsWith(where + c.message));
    EXPECT_EQ(ExitCodeOf(found.status()), ExitCode::kCheckpoint);
  }
}

TEST(TrainingState, RefusesAnotherModel) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder);
  SmallRun saved(1);
  saved.Train(1);
  ASSERT_TRUE(Save(saved, &store, 1).ok());
  ModelConfig config = saved.model->config();
  std::vector<ModelConfig> others(4, config);
  const char* const names[] = {"intermediate_size ", "norm_eps ", "lrpe_layers ", "layer_pattern "};
  others[0].intermediate_size = 24;
  others[1].norm_eps = 1e-5;   // same sizes, another function
  others[2].lrpe_layers = {};  // one parameter fewer
  others[3].layer_pattern = {LayerKind::kSoftmax};
  for (size_t i = 0; i < others.size(); ++i) {
    SmallRun run(2, DType::kF64, others[i]);
    const auto found = Restore(&store, run, run.progress);
    ASSERT_FALSE(found.ok());
    EXPECT_THAT(std::string(found.status().message()),
                HasSubstr(absl::StrCat("the checkpoint was made with model ", names[i])));
    // What is alike is not told.
    EXPECT_THAT(std::string(found.status().message()), Not(HasSubstr("hidden_size")));
    EXPECT_THAT(std::string(found.status().message()),
                HasSubstr(absl::StrCat(", this run has ", names[i])));
    EXPECT_EQ(ExitCodeOf(found.status()), ExitCode::kCheckpoint);
  }
}

TEST(TrainingState, DamageFallsBackOrIsRefused) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder);
  SmallRun run(1);
  run.Train(1);
  const std::string good = run.Bytes();
  ASSERT_TRUE(Save(run, &store, 2).ok());
  run.Train(2);
  ASSERT_TRUE(Save(run, &store, 2).ok());
  const std::string file = folder / "checkpoints/step-00000002/optimizer.safetensors";
  std::string bytes = ReadBytes(file);
  bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 1);
  WriteBytes(file, bytes);

  SmallRun refused(2);
  const auto without = Restore(&store, refused, run.progress, /*fallback=*/false);
  ASSERT_FALSE(without.ok());
  EXPECT_EQ(ExitCodeOf(without.status()), ExitCode::kCheckpoint);
  EXPECT_THAT(std::string(without.status().message()), HasSubstr("optimizer.safetensors"));
  SmallRun restored(2);
  const auto with = Restore(&store, restored, run.progress, /*fallback=*/true);
  ASSERT_TRUE(with.ok() && *with) << with.status();
  EXPECT_EQ(restored.progress.step, 1);
  EXPECT_EQ(restored.Bytes(), good);
}

TEST(TrainingState, RefusesAStateItDoesNotUnderstand) {
  const TestFolder folder;
  CheckpointStore store = OpenStore(folder);
  SmallRun saved(1);
  for (const char* state : {"{}", "{\"step\": \"one\"}"}) {
    saved.Train(saved.progress.step + 1);
    CheckpointSave save;
    save.step = saved.progress.step;
    save.state_json = state;
    // The model is in order; only what the run's position should say is not.
    save.write = [&](CheckpointFiles& files) {
      return files.AddText("config.json",
                           ToHuggingFaceConfig(saved.model->config(), "float64").dump());
    };
    ASSERT_TRUE(store.Save(save).ok());
    const auto found = Restore(&store, saved, saved.progress);
    ASSERT_FALSE(found.ok());
    EXPECT_EQ(ExitCodeOf(found.status()), ExitCode::kCheckpoint);
    EXPECT_THAT(std::string(found.status().message()), HasSubstr("manifest.json: state: "));
  }
}

}  // namespace
}  // namespace evenkeel
