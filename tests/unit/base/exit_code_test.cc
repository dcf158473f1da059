#include "runtime/base/exit_code.h"

#include <gtest/gtest.h>

namespace evenkeel {
namespace {

TEST(ExitCode, IsDerivedFromTheStatusCode) {
  const struct {
    absl::Status status;
    int code;
  } cases[] = {
      {absl::OkStatus(), 0},
      {absl::InvalidArgumentError("x"), 2},
      {absl::DeadlineExceededError("x"), 6},
      {absl::UnavailableError("x"), 7},
      {absl::ResourceExhaustedError("x"), 8},
      {absl::InternalError("x"), 1},
      {absl::NotFoundError("x"), 1},
      {absl::DataLossError("x"), 1},
      {absl::UnknownError("x"), 1},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(static_cast<int>(ExitCodeOf(c.status)), c.code) << c.status;
  }
}

TEST(ExitCode, AttachedCodeWinsAndSurvivesCopies) {
  for (const ExitCode code : {ExitCode::kInternal, ExitCode::kUsage, ExitCode::kData,
                              ExitCode::kCheckpoint, ExitCode::kDiverged, ExitCode::kTimeout,
                              ExitCode::kPeersLost, ExitCode::kOutOfMemory, ExitCode::kPreempted}) {
    const absl::Status status = WithExitCode(absl::InvalidArgumentError("text"), code);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), "text");
    const absl::Status copy = status;
    EXPECT_EQ(ExitCodeOf(copy), code);
  }
  EXPECT_EQ(static_cast<int>(ExitCode::kPreempted), 75);
}

TEST(ExitCode, LastAttachedCodeWins) {
  EXPECT_EQ(ExitCodeOf(WithExitCode(WithExitCode(absl::InternalError("x"), ExitCode::kData),
                                    ExitCode::kTimeout)),
            ExitCode::kTimeout);
}

TEST(ExitCode, OkStaysOk) {
  const absl::Status status = WithExitCode(absl::OkStatus(), ExitCode::kDiverged);
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kOk);
}

}  // namespace
}  // namespace evenkeel
