#include "launch/memory_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/exit_code.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

RunConfig SmallRun() {
  RunConfig config;
  config.model.vocab_size = 256;
  config.model.hidden_size = 64;
  config.model.intermediate_size = 128;
  config.model.num_layers = 8;
  config.model.num_heads = 4;
  config.data.sequence_length = 4096;
  config.train.global_batch_size = 16;
  config.train.micro_batch_size = 4;
  return config;
}

int64_t Total(const RunConfig& config, int64_t micro_batch, Recompute recompute) {
  return PlanRankMemory(config, micro_batch, recompute).total();
}

MemoryBudget Host(int ranks, int64_t bytes) {
  return {bytes, ranks, "host"};
}

TEST(CheckFits, AllowsWhatJustFits) {
  const RunConfig config = SmallRun();
  const int64_t need = Total(config, 4, Recompute::kNone);
  EXPECT_TRUE(CheckFits(config, Host(1, need)).ok());
  EXPECT_FALSE(CheckFits(config, Host(1, need - 1)).ok());
  EXPECT_TRUE(CheckFits(config, Host(3, 3 * need)).ok());
  EXPECT_FALSE(CheckFits(config, Host(4, 3 * need)).ok());
}

TEST(CheckFits, PlansForTheMicroBatchThatIsReallyRun) {
  RunConfig config = SmallRun();
  config.train.global_batch_size = 2;
  EXPECT_EQ(Total(config, 4, Recompute::kNone), Total(config, 2, Recompute::kNone));
}

TEST(CheckFits, NamesTheNearestRemedy) {
  const RunConfig config = SmallRun();
  const struct {
    int64_t host_bytes;
    const char* remedy;
  } cases[] = {
      {Total(config, 3, Recompute::kNone), ": train.micro_batch_size=3 fits"},
      {Total(config, 1, Recompute::kNone), ": train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kMlp),
       ": runtime.recompute=mlp with train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kLayer),
       ": runtime.recompute=layer with train.micro_batch_size=1 fits"},
      {Total(config, 1, Recompute::kLayer) - 1, ": lower data.sequence_length"},
  };
  for (const auto& c : cases) {
    const absl::Status status = CheckFits(config, Host(1, c.host_bytes));
    EXPECT_THAT(std::string(status.message()), ::testing::EndsWith(c.remedy));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
  }
}

TEST(CheckFits, FewerRanksAreARemedyOnlyOfSeveral) {
  const absl::Status status = CheckFits(SmallRun(), Host(2, int64_t{1} << 20));
  EXPECT_THAT(std::string(status.message()),
              ::testing::EndsWith(": start fewer ranks a host, or lower data.sequence_length"));
}

TEST(CheckFits, SpeaksOfTheGpuAndPlansForIt) {
  RunConfig config = SmallRun();
  const int64_t on_cpu = Total(config, 4, Recompute::kNone);
  config.runtime.device = Device::kCuda;
  EXPECT_NE(Total(config, 4, Recompute::kNone), on_cpu);
  const auto message = [&](int64_t bytes, int sharers) {
    const absl::Status status = CheckFits(config, {bytes, sharers, "GPU"});
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kOutOfMemory);
    return std::string(status.message());
  };
  EXPECT_TRUE(CheckFits(config, {Total(config, 4, Recompute::kNone), 1, "GPU"}).ok());
  EXPECT_THAT(message(Total(config, 4, Recompute::kNone) - 1, 1), HasSubstr("1 rank of this GPU"));
  const int64_t three = Total(config, 3, Recompute::kNone);
  EXPECT_THAT(message(three, 1), HasSubstr("the GPU has " + FormatBytes(three)));
  EXPECT_THAT(message(three, 1), ::testing::EndsWith(": train.micro_batch_size=3 fits"));
  EXPECT_THAT(message(2 * three, 2), ::testing::EndsWith(": train.micro_batch_size=3 fits"));
  EXPECT_THAT(message(Total(config, 1, Recompute::kLayer), 1),
              ::testing::EndsWith(": runtime.recompute=layer with train.micro_batch_size=1 fits"));
  EXPECT_THAT(message(int64_t{1} << 20, 2),
              ::testing::EndsWith(": start fewer ranks a GPU, or lower data.sequence_length"));
}

TEST(CheckFits, FindsTheRemedyOfAHugeBatchAtOnce) {
  RunConfig config = SmallRun();
  config.train.micro_batch_size = config.train.global_batch_size = 1000000;
  EXPECT_THAT(
      std::string(CheckFits(config, Host(1, Total(config, 777, Recompute::kNone))).message()),
      ::testing::EndsWith(": train.micro_batch_size=777 fits"));
}

TEST(CheckFits, SaysHowMuchIsNeededAndThere) {
  const RunConfig config = SmallRun();
  const absl::Status status = CheckFits(config, Host(2, int64_t{1} << 20));
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 ranks of this host need"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(FormatBytes(Total(config, 4, Recompute::kNone))));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the host has 1.0 MiB"));
}

}  // namespace
}  // namespace evenkeel
