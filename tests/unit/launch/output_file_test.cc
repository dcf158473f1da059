#include "launch/output_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "runtime/base/exit_code.h"
#include "runtime/comm/self_communicator.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

// Names of what is in a folder, one after the other.
std::string Entries(const std::string& folder) {
  std::string names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names += entry.path().filename().string() + " ";
  }
  return names;
}

TEST(OutputFile, MakesFoldersAndLeavesNothingInThem) {
  const TestFolder folder;
  const std::string path = folder / "a/b/c.svg";
  ASSERT_TRUE(PrepareOutputFile(path).ok());
  EXPECT_EQ(Entries(folder / "a/b"), "");
  ASSERT_TRUE(WriteTextFile(path, "old").ok());
  const auto self = MakeSelfCommunicator();
  ASSERT_TRUE(PrepareOutputFile(*self, path).ok());
  EXPECT_EQ(ReadBytes(path), "old");
  EXPECT_EQ(Entries(folder / "a/b"), "c.svg ");
  ASSERT_TRUE(PrepareOutputFolder(folder / "a/d").ok());
  EXPECT_EQ(Entries(folder / "a/d"), "");
}

TEST(OutputFile, AnOptionThatWasNotGivenAsksForNothing) {
  EXPECT_TRUE(PrepareOutputFile("").ok());
  EXPECT_TRUE(PrepareOutputFolder("").ok());
}

TEST(OutputFile, SaysBeforeTheWorkThatItCannotBeWritten) {
  const TestFolder folder;
  WriteBytes(folder / "file", "text");
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  const auto self = MakeSelfCommunicator();
  const struct {
    absl::Status status;
    std::string message;
  } cases[] = {
      {PrepareOutputFile(folder.path()), folder.path() + ": cannot be written: "},
      {PrepareOutputFile(folder / "pipe"), folder / "pipe: cannot be written: "},
      {PrepareOutputFile(folder / "file/x.svg"), folder / "file: cannot make folder: "},
      {PrepareOutputFile(*self, folder / "file/x.svg"), folder / "file: cannot make folder: "},
      {PrepareOutputFolder(folder / "file"), folder / "file: cannot make folder: "},
      // Nobody may make a file here, not even root.
      {PrepareOutputFile("/proc/x.svg"), "/proc/x.svg: cannot be written: "},
      {PrepareOutputFolder("/proc"), "/proc/file: cannot be written: "},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(std::string(c.status.message()), HasSubstr(c.message));
    EXPECT_EQ(ExitCodeOf(c.status), ExitCode::kUsage) << c.status;
  }
  EXPECT_EQ(ReadBytes(folder / "file"), "text");
}

}  // namespace
}  // namespace evenkeel
