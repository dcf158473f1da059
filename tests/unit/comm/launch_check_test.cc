#include "runtime/comm/launch_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "runtime/base/exit_code.h"
#include "runtime/comm/rank_list.h"

namespace evenkeel {
namespace {

using Environment = std::map<std::string, std::string>;

GetEnvironment From(const Environment& environment) {
  return [&environment](const char* name) {
    const auto it = environment.find(name);
    return it == environment.end() ? nullptr : it->second.c_str();
  };
}

TEST(CheckLaunch, TellsCopiesFromJobs) {
  struct Case {
    int world_size;
    Environment environment;
    const char* refused;  // the variable that the message names, or null
  };
  const Case cases[] = {
      {1, {}, nullptr},
      {4, {{"SLURM_NTASKS", "8"}}, nullptr},
      {1, {{"SLURM_NTASKS", "8"}}, "SLURM_NTASKS is 8"},
      {1, {{"SLURM_NTASKS", "1"}}, nullptr},
      {1, {{"PMI_SIZE", "2"}}, "PMI_SIZE is 2"},
      {1, {{"WORLD_SIZE", "16"}}, "WORLD_SIZE is 16"},
      {1, {{"OMPI_COMM_WORLD_SIZE", "4"}}, "OMPI_COMM_WORLD_SIZE is 4"},
      {1, {{"PMIX_RANK", "3"}}, "PMIX_RANK is 3"},
      {1, {{"PMIX_RANK", "0"}}, nullptr},
      // One rank on purpose, inside a larger allocation.
      {1, {{"OMPI_COMM_WORLD_SIZE", "1"}, {"SLURM_NTASKS", "8"}}, nullptr},
      {1, {{"SLURM_NTASKS", "many"}}, nullptr},
  };
  for (const Case& c : cases) {
    const absl::Status status = CheckLaunch(c.world_size, From(c.environment));
    if (c.refused == nullptr) {
      EXPECT_TRUE(status.ok()) << status;
    } else {
      EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
      EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.refused));
    }
  }
}

TEST(CheckLaunch, KnowsItsLauncher) {
  EXPECT_FALSE(IsStartedByLauncher(From(Environment{{"SLURM_NTASKS", "8"}})));
  EXPECT_TRUE(IsStartedByLauncher(From(Environment{{"OMPI_COMM_WORLD_SIZE", "1"}})));
  EXPECT_TRUE(IsStartedByLauncher(From(Environment{{"PMIX_RANK", "0"}})));
}

TEST(RankList, JoinsRuns) {
  EXPECT_EQ(FormatRanks({3}), "rank 3");
  EXPECT_EQ(FormatRanks({0, 1}), "ranks 0, 1");
  EXPECT_EQ(FormatRanks({0, 2, 3, 4, 7, 8}), "ranks 0, 2-4, 7, 8");
}

}  // namespace
}  // namespace evenkeel
