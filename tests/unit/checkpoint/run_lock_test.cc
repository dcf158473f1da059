#include "runtime/checkpoint/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

TEST(RunLock, RefusesASecondRunAndNamesTheFirst) {
  const TestFolder folder;
  {
    const absl::StatusOr<RunLock> first = RunLock::Acquire(folder.path());
    ASSERT_TRUE(first.ok()) << first.status();
    const absl::Status second = RunLock::Acquire(folder.path()).status();
    EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ExitCodeOf(second), ExitCode::kUsage);
    EXPECT_THAT(std::string(second.message()), HasSubstr(folder.path()));
    EXPECT_THAT(std::string(second.message()), HasSubstr(absl::StrCat("process ", getpid())));
  }
  EXPECT_TRUE(RunLock::Acquire(folder.path()).ok()) << "not released";
}

TEST(RunLock, TakesOverFromAKilledRun) {
  const TestFolder folder;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const absl::StatusOr<RunLock> lock = RunLock::Acquire(folder.path());
    (void)!write(ready[1], lock.ok() ? "y" : "n", 1);
    pause();
    _exit(0);
  }
  char answer = '?';
  ASSERT_EQ(read(ready[0], &answer, 1), 1);
  ASSERT_EQ(answer, 'y');
  EXPECT_THAT(std::string(RunLock::Acquire(folder.path()).status().message()),
              HasSubstr(absl::StrCat("process ", child)));
  ASSERT_EQ(kill(child, SIGKILL), 0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  close(ready[0]);
  close(ready[1]);
  EXPECT_TRUE(RunLock::Acquire(folder.path()).ok());
}

TEST(RunLock, DoesNotTrustWhatTheFileSays) {
  const TestFolder folder;
  const absl::StatusOr<RunLock> first = RunLock::Acquire(folder.path());
  ASSERT_TRUE(first.ok()) << first.status();
  WriteBytes(folder / "run.lock", "\x1b[2Jevil\xff");
  EXPECT_THAT(std::string(RunLock::Acquire(folder.path()).status().message()),
              ::testing::EndsWith(": [2Jevil"));
  WriteBytes(folder / "run.lock", std::string(1'000'000, 'x'));
  EXPECT_THAT(std::string(RunLock::Acquire(folder.path()).status().message()),
              HasSubstr("an unknown process"));
}

TEST(RunLock, FailsWithoutAFolder) {
  const TestFolder folder;
  EXPECT_TRUE(absl::IsNotFound(RunLock::Acquire(folder / "none").status()));
}

}  // namespace
}  // namespace evenkeel
