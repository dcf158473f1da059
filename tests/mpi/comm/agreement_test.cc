#include "runtime/comm/agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Agreement : public testing::Test {
 protected:
  Agreement() : runtime_(*MpiRuntime::Create({.timeout_s = 20})), comm_(runtime_.world()) {}

  MpiRuntime runtime_;
  Communicator& comm_;
};

TEST_F(Agreement, StringsOfAllLengths) {
  const std::string mine(static_cast<size_t>(comm_.rank() * 3),
                         static_cast<char>('a' + comm_.rank()));
  const auto all = AllGatherStrings(comm_, mine, "names");
  ASSERT_TRUE(all.ok());
  for (int r = 0; r < comm_.size(); ++r) {
    EXPECT_EQ((*all)[static_cast<size_t>(r)],
              std::string(static_cast<size_t>(r * 3), static_cast<char>('a' + r)));
  }
  for (const std::string& text : {std::string(), std::string("x"), std::string("a\0b", 3)}) {
    const auto got = BroadcastString(comm_, comm_.rank() == 0 ? text : "ignored", 0, "text");
    ASSERT_TRUE(got.ok());
    EXPECT_EQ(*got, text);
  }
}

TEST_F(Agreement, DifferentStringsAreNamedWithTheirRanks) {
  EXPECT_TRUE(AgreeOnString(comm_, "same", "config").ok());
  const absl::Status status = AgreeOnString(comm_, comm_.rank() == 1 ? "b" : "a", "version");
  if (comm_.size() == 1) return;
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
  const char* expected[] = {"", "", "rank 0 has a", "ranks 0, 2 have a", "ranks 0, 2, 3 have a"};
  EXPECT_EQ(status.message(), std::string("the ranks differ in version: ") +
                                  expected[comm_.size()] + "; rank 1 has b");

  // Of long texts the line that differs, not the beginning, which may not.
  const std::string begin = "x: " + std::string(300, '-') + "\n", end = "z: 1\n";
  const absl::Status lines = AgreeOnString(
      comm_, begin + (comm_.rank() == 1 ? "  yb: 2" : "  ya: 2") + "\n" + end, "config");
  const char* others[] = {"", "", "rank 0 has", "ranks 0, 2 have", "ranks 0, 2, 3 have"};
  EXPECT_EQ(lines.message(), std::string("the ranks differ in config: ") + others[comm_.size()] +
                                 " ya: 2; rank 1 has yb: 2");
}

TEST_F(Agreement, AllRanksGetTheFailureOfTheLowestOne) {
  EXPECT_TRUE(AgreeOnStatus(comm_, absl::OkStatus(), "start").ok());
  const int last = comm_.size() - 1;
  absl::Status mine;
  if (comm_.rank() == last) mine = WithExitCode(absl::DataLossError("bad index"), ExitCode::kData);
  const absl::Status one = AgreeOnStatus(comm_, mine, "load");
  EXPECT_EQ(one.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ExitCodeOf(one), ExitCode::kData);
  EXPECT_THAT(std::string(one.message()), HasSubstr("bad index"));

  // A request to stop on rank 0 yields to the failure of the last.
  if (comm_.size() == 1) return;
  if (comm_.rank() == 0) mine = WithExitCode(absl::CancelledError("stop"), ExitCode::kPreempted);
  const absl::Status two = AgreeOnStatus(comm_, mine, "load");
  EXPECT_EQ(ExitCodeOf(two), ExitCode::kData);
  EXPECT_THAT(std::string(two.message()), StartsWith("rank " + std::to_string(last) + ": "));

  // Several failures.
  const absl::Status all =
      AgreeOnStatus(comm_, absl::InternalError("on " + std::to_string(comm_.rank())), "load");
  EXPECT_THAT(std::string(all.message()), StartsWith("rank 0: on 0 (also failed: rank"));

  // The same one everywhere is said once.
  const absl::Status same = AgreeOnStatus(comm_, absl::InternalError("no room"), "load");
  EXPECT_EQ(same.message(), "no room");

  // A stop alone is agreed on too.
  const absl::Status stop = AgreeOnStatus(
      comm_,
      comm_.rank() == last ? WithExitCode(absl::CancelledError("stop"), ExitCode::kPreempted)
                           : absl::OkStatus(),
      "step");
  EXPECT_EQ(ExitCodeOf(stop), ExitCode::kPreempted);
}

}  // namespace
}  // namespace evenkeel
