#include "runtime/checkpoint/json_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

TEST(JsonFile, RoundTripsExactly) {
  const TestFolder folder;
  const nlohmann::json document = {{"seed", 18446744073709551615u},
                                   {"loss", 0.1},
                                   {"tiny", 5e-324},
                                   {"negative", -9007199254740993},
                                   {"text", "\xc3\xa9\n\"\\"},
                                   {"list", {1, nullptr, true}}};
  const std::string path = folder / "x.json";
  const absl::StatusOr<FileDigest> digest = WriteJsonFile(path, document, true);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(digest->xxh3_128, HashText(ReadBytes(path)));
  const absl::StatusOr<nlohmann::json> back = ReadJsonFile(path);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, document);
}

TEST(JsonFile, RefusesBadDocumentsWithFileAndByte) {
  struct Case {
    std::string text;
    std::string reason;
  };
  const Case cases[] = {
      {"", "byte 1"},
      {"{\"a\":1,}", "byte 8"},
      {"{\"a\":1} x", "byte 9"},
      {"{\"a\":\"\xff\"}", "byte 7"},
      {"nul", "byte 4"},
      {"{\"a\":1,\"b\":{\"c\":1,\"c\":2}}", "key \"c\" appears twice"},
      {std::string(65, '[') + std::string(65, ']'), "byte 64: nested more than 64 deep"},
      {std::string(1'000'000, '['), "byte 64: nested more than 64 deep"},
      {"[1e999]", "x.json"},
  };
  for (const Case& c : cases) {
    const absl::Status status = ParseJson(c.text, "x.json").status();
    EXPECT_FALSE(status.ok()) << c.text.substr(0, 80);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.reason)) << c.text.substr(0, 80);
    EXPECT_THAT(std::string(status.message()), HasSubstr("x.json"));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
  }
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']'), "x").ok());
  EXPECT_TRUE(ParseJson("{\"a\":\"[[[\\\"{{{\",\"b\":{\"a\":1}}", "x").ok());
}

TEST(JsonFile, RefusesHugeAndSpecialFiles) {
  const TestFolder folder;
  const std::string path = folder / "huge.json";
  WriteBytes(path, "{}");
  std::filesystem::resize_file(path, static_cast<uintmax_t>(kMaxJsonBytes) + 1);
  EXPECT_THAT(std::string(ReadJsonFile(path).status().message()), HasSubstr("at most"));
  EXPECT_TRUE(absl::IsNotFound(ReadJsonFile(folder / "none.json").status()));
  EXPECT_THAT(std::string(ReadJsonFile(folder.path()).status().message()),
              HasSubstr("not a regular file"));
  // Opening a pipe must not wait for a writer.
  ASSERT_EQ(mkfifo((folder / "pipe.json").c_str(), 0600), 0);
  EXPECT_THAT(std::string(ReadJsonFile(folder / "pipe.json").status().message()),
              HasSubstr("not a regular file"));
}

TEST(JsonFile, AFailedWriteLeavesTheOldFile) {
  const TestFolder folder;
  const std::string path = folder / "x.json";
  ASSERT_TRUE(WriteJsonFile(path, {{"version", 1}}, true).ok());
  const std::string before = ReadBytes(path);
  for (const std::string failing : {"open", "write", "fsync", "rename"}) {
    const IoHook hook = [&](const char* call, const std::string&) {
      return call == failing ? EIO : 0;
    };
    const absl::Status status = WriteJsonFile(path, {{"version", 2}}, true, &hook).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("Input/output error")) << failing;
    EXPECT_EQ(ReadBytes(path), before) << failing;
    EXPECT_EQ(ListFolder(folder.path())->size(), 1u) << failing << " left a temporary file";
  }
  EXPECT_FALSE(WriteJsonFile(path, {{"text", "\xff"}}, true).ok());
  EXPECT_EQ(ReadBytes(path), before);
}

TEST(FileIo, HashesAreXxh3) {
  // From the xxHash project's own tool: xxh128sum of nothing.
  EXPECT_EQ(HashText(""), "99aa06d3014798d86001c324468d497f");
}

}  // namespace
}  // namespace evenkeel
