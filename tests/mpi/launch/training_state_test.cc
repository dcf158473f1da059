// Rank 0 alone has the checkpoints; the others must get every bit of them, and every error.
#include "launch/training_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "runtime/base/exit_code.h"
#include "runtime/comm/mpi_runtime.h"
#include "tests/unit/launch/small_run.h"

namespace evenkeel {
namespace {

class ResumeOverRanks : public testing::Test {
 protected:
  ResumeOverRanks() : mpi_(*MpiRuntime::Create({.timeout_s = 20})), comm_(mpi_.world()) {
    if (comm_.rank() == 0) {
      store_ = *CheckpointStore::Open(folder_ / "checkpoints", CheckpointAccess::kReadWrite);
    }
  }

  CheckpointStore* store() { return store_.has_value() ? &*store_ : nullptr; }
  absl::Status SaveOverRanks(SmallRun& run) {
    return SaveTraining(run.runtime.context, comm_, Replicated(run.model->config()), store(),
                        run.progress, 1, *run.model, run.optimizer);
  }

  MpiRuntime mpi_;
  Communicator& comm_;
  TestFolder folder_;
  std::optional<CheckpointStore> store_;
};

TEST_F(ResumeOverRanks, GivesEveryRankTheSameBits) {
  SmallRun saved(1);
  saved.Train(3);
  ASSERT_TRUE(SaveOverRanks(saved).ok());
  SmallRun run(static_cast<uint64_t>(10 + comm_.rank()));
  const TrainingProgress expected = run.progress;
  const auto found =
      RestoreTraining(run.runtime.context, comm_, Replicated(run.model->config()), store(), true,
                      expected, &run.progress, *run.model, run.optimizer);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(*found);
  EXPECT_EQ(run.Bytes(), saved.Bytes());
  EXPECT_EQ(run.progress.step, 3);
  EXPECT_EQ(run.progress.samples, 24);
  EXPECT_EQ(run.progress.tokens, 1536);
  EXPECT_EQ(run.progress.data_fingerprint, "a5");
}

TEST_F(ResumeOverRanks, WithoutACheckpointEveryRankStartsAnew) {
  SmallRun run(1);
  const auto found =
      RestoreTraining(run.runtime.context, comm_, Replicated(run.model->config()), store(), true,
                      run.progress, &run.progress, *run.model, run.optimizer);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_FALSE(*found);
  EXPECT_EQ(run.progress.step, 0);
}

TEST_F(ResumeOverRanks, EveryRankHearsOfAnError) {
  SmallRun saved(1);
  saved.Train(1);
  ASSERT_TRUE(SaveOverRanks(saved).ok());
  SmallRun run(2);
  TrainingProgress expected = run.progress;
  expected.seed = 4;
  const auto found =
      RestoreTraining(run.runtime.context, comm_, Replicated(run.model->config()), store(), true,
                      expected, &run.progress, *run.model, run.optimizer);
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(ExitCodeOf(found.status()), ExitCode::kCheckpoint);
  EXPECT_THAT(std::string(found.status().message()),
              testing::HasSubstr("the checkpoint was made with seed 3, this run has 4"));
}

}  // namespace
}  // namespace evenkeel
