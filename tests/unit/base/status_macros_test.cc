#include "runtime/base/status_macros.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "runtime/base/exit_code.h"

namespace evenkeel {
namespace {

absl::Status ReturnIfError(absl::Status status, int* evaluated, bool* went_on) {
  EK_RETURN_IF_ERROR((++*evaluated, status));
  *went_on = true;
  return absl::OkStatus();
}

TEST(ReturnIfError, ReturnsTheErrorWithItsPayload) {
  int evaluated = 0;
  bool went_on = false;
  const absl::Status status = ReturnIfError(
      WithExitCode(absl::DataLossError("broken"), ExitCode::kCheckpoint), &evaluated, &went_on);
  EXPECT_EQ(status.message(), "broken");
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
  EXPECT_EQ(evaluated, 1);
  EXPECT_FALSE(went_on);
}

TEST(ReturnIfError, GoesOnWhenOk) {
  int evaluated = 0;
  bool went_on = false;
  EXPECT_TRUE(ReturnIfError(absl::OkStatus(), &evaluated, &went_on).ok());
  EXPECT_EQ(evaluated, 1);
  EXPECT_TRUE(went_on);
}

absl::StatusOr<std::unique_ptr<int>> MakeInt(int value) {
  if (value < 0) return absl::OutOfRangeError("negative");
  return std::make_unique<int>(value);
}

// Two in one function, a declaration and an assignment, of a type that only moves; the function's
// own type differs from theirs.
absl::StatusOr<std::string> Sum(int a, int b) {
  EK_ASSIGN_OR_RETURN(const std::unique_ptr<int> first, MakeInt(a));
  std::unique_ptr<int> second;
  EK_ASSIGN_OR_RETURN(second, MakeInt(b));
  return std::to_string(*first + *second);
}

TEST(AssignOrReturn, AssignsOrReturns) {
  EXPECT_EQ(*Sum(2, 3), "5");
  EXPECT_EQ(Sum(-1, 3).status().message(), "negative");
  EXPECT_EQ(Sum(2, -1).status().code(), absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace evenkeel
