#include "runtime/checkpoint/checkpoint_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/exit_code.h"
#include "tests/unit/checkpoint/small_checkpoint.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kReadWrite = CheckpointAccess::kReadWrite;

TEST(CheckpointStore, SavesLoadsAndKeepsTheLast) {
  const TestFolder folder;
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder / "checkpoints", kReadWrite);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_THAT(*store->Steps(), ElementsAre());
  EXPECT_TRUE(absl::IsNotFound(store->LoadLatest(true).status()));
  for (int64_t step : {0, 20, 40, 100'000'000, 100'000'020}) {
    ASSERT_TRUE(store->Save(SmallSave(step, 1, 3)).ok());
  }
  EXPECT_THAT(*store->Steps(), ElementsAre(40, 100'000'000, 100'000'020));
  EXPECT_TRUE(fs::exists(folder / "checkpoints/step-00000040/manifest.json"));
  EXPECT_TRUE(fs::exists(folder / "checkpoints/step-100000020/manifest.json"));
  const absl::StatusOr<OpenedCheckpoint> latest = store->LoadLatest(false);
  ASSERT_TRUE(latest.ok()) << latest.status();
  ExpectSmallCheckpoint(*latest, 100'000'020, 1);
  const absl::StatusOr<OpenedCheckpoint> older = store->Load(40, CheckpointVerify::kSizes);
  ASSERT_TRUE(older.ok()) << older.status();
  ExpectSmallCheckpoint(*older, 40, 1);
  EXPECT_TRUE(absl::IsNotFound(store->Load(20, CheckpointVerify::kHashes).status()));
  const absl::StatusOr<OpenedCheckpoint> by_path =
      CheckpointStore::LoadFolder(folder / "checkpoints/step-00000040", CheckpointVerify::kHashes);
  ASSERT_TRUE(by_path.ok()) << by_path.status();
  EXPECT_EQ(by_path->step, 40);
}

TEST(CheckpointStore, SavingAStepAgainReplacesIt) {
  const TestFolder folder;
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder.path(), kReadWrite);
  ASSERT_TRUE(store.ok()) << store.status();
  for (int attempt = 1; attempt <= 3; ++attempt) {
    ASSERT_TRUE(store->Save(SmallSave(20, attempt, 1)).ok());
    EXPECT_THAT(*ListFolder(folder.path()), ElementsAre("step-00000020"));
    const absl::StatusOr<OpenedCheckpoint> latest = store->LoadLatest(false);
    ASSERT_TRUE(latest.ok()) << latest.status();
    ExpectSmallCheckpoint(*latest, 20, attempt);
  }
}

// A run that went back to step 20 must not lose what it saves now, nor what it had.
TEST(CheckpointStore, LeavesLaterStepsAlone) {
  const TestFolder folder;
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder.path(), kReadWrite);
  ASSERT_TRUE(store.ok()) << store.status();
  for (int64_t step : {20, 60, 80}) ASSERT_TRUE(store->Save(SmallSave(step, 1, 3)).ok());
  ASSERT_TRUE(store->Save(SmallSave(40, 2, 1)).ok());
  EXPECT_THAT(*store->Steps(), ElementsAre(40, 60, 80));
}

TEST(CheckpointStore, RemovesOnlyItsOwnTemporaries) {
  const TestFolder folder, outside;
  WriteBytes(outside / "precious", "x");
  for (const char* name :
       {"step-00000020.tmp-0123456789abcdef", "step-00000020.tmp-0123456789ABCDEF",
        "step-20.tmp-0123456789abcdef", "step-00000020.tmp-1", "notes.tmp-0123456789abcdef",
        "step-00000020.r1.tmp-0123456789abcdef", "step-00000030.bak", "step-30"}) {
    fs::create_directory(folder / name);
  }
  WriteBytes(folder / "step-00000020.tmp-0123456789abcdef/model.safetensors", "half");
  fs::create_symlink(outside / "precious", folder / "step-00000020.tmp-0123456789abcdef/link");
  fs::create_directory_symlink(outside.path(), folder / "step-00000040.tmp-0123456789abcdef");
  fs::create_directory_symlink(outside.path(), folder / "step-00000050");
  WriteBytes(folder / "step-00000060", "a file");
  absl::StatusOr<CheckpointStore> reader =
      CheckpointStore::Open(folder.path(), CheckpointAccess::kReadOnly);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE(fs::exists(folder / "step-00000020.tmp-0123456789abcdef")) << "a reader removed it";
  EXPECT_THAT(*reader->Steps(), ElementsAre());
  ::testing::internal::CaptureStderr();
  ASSERT_TRUE(CheckpointStore::Open(folder.path(), kReadWrite).ok());
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("step-00000020.tmp-0123456789abcdef"));
  EXPECT_FALSE(fs::exists(folder / "step-00000020.tmp-0123456789abcdef"));
  EXPECT_EQ(ListFolder(folder.path())->size(), 10u);
  EXPECT_TRUE(fs::exists(outside / "precious"));
}

TEST(CheckpointStore, RefusesBadSaves) {
  const TestFolder folder;
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder.path(), kReadWrite);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(store->Save(SmallSave(10, 1, 1)).ok());
  const auto refuse = [&](const char* what, const std::function<void(CheckpointSave&)>& spoil,
                          const char* reason) {
    SCOPED_TRACE(what);
    CheckpointSave save = SmallSave(20, 1, 1);
    spoil(save);
    const absl::Status status = store->Save(save);
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
    EXPECT_THAT(*ListFolder(folder.path()), ElementsAre("step-00000010"));
  };
  const auto writing = [](const std::function<absl::Status(CheckpointFiles&)>& extra) {
    return [extra](CheckpointSave& save) {
      save.write = [extra, write = save.write](CheckpointFiles& files) {
        const absl::Status status = write(files);
        return status.ok() ? extra(files) : status;
      };
    };
  };
  refuse(
      "state no JSON", [](CheckpointSave& s) { s.state_json = std::string("{"); }, "byte 2");
  refuse(
      "state no object", [](CheckpointSave& s) { s.state_json = std::string("[]"); },
      "not an object");
  refuse(
      "too large", [](CheckpointSave& s) { s.estimated_bytes = int64_t{1} << 60; },
      "not enough space");
  refuse("caller fails",
         writing([](CheckpointFiles&) { return absl::UnavailableError("rank 2 lost"); }),
         "checkpoint of step 20 not saved: rank 2 lost");
  refuse("path", writing([](CheckpointFiles& f) { return f.AddText("../x", ""); }), "plain");
  refuse("manifest", writing([](CheckpointFiles& f) { return f.AddText("manifest.json", ""); }),
         "already there");
  refuse("twice", writing([](CheckpointFiles& f) { return f.AddText("config.json", ""); }),
         "already there");
  refuse("declared only", writing([](CheckpointFiles& f) {
           return f.AddWritten("x", {5, std::string(32, '0')});
         }),
         "x is missing");
  refuse("declared size", writing([](CheckpointFiles& f) {
           WriteBytes(f.folder() + "/x", "1234");
           return f.AddWritten("x", {5, std::string(32, '0')});
         }),
         "4 bytes, expected 5");
  refuse("link", writing([](CheckpointFiles& f) {
           fs::create_symlink("/etc/hostname", f.folder() + "/x");
           return absl::OkStatus();
         }),
         "symbolic link");
}

class DamageTest : public ::testing::Test {
 protected:
  DamageTest() : store_(CheckpointStore::Open(folder_.path(), kReadWrite)) {
    EXPECT_TRUE(store_.ok()) << store_.status();
    for (int64_t step : {10, 20}) {
      EXPECT_TRUE(store_->Save(SmallSave(step, 1, 2)).ok());
    }
  }

  // Expects the newest checkpoint to be refused by the name of `file` and with `reason`, and the
  // one before to be offered or taken; then puts `file` back.
  void ExpectRefused(const std::string& file, const std::string& reason) {
    SCOPED_TRACE(absl::StrCat(file, ": ", reason));
    const absl::Status status = store_->LoadLatest(false).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
    EXPECT_THAT(std::string(status.message()), HasSubstr("step-00000020/" + file));
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("newest good checkpoint is " + folder_ / "step-00000010"));
    EXPECT_FALSE(store_->Load(20, CheckpointVerify::kHashes).ok());
    ::testing::internal::CaptureStderr();
    const absl::StatusOr<OpenedCheckpoint> fallen = store_->LoadLatest(true);
    const std::string log = ::testing::internal::GetCapturedStderr();
    ASSERT_TRUE(fallen.ok()) << fallen.status();
    ExpectSmallCheckpoint(*fallen, 10, 1);
    EXPECT_THAT(log, HasSubstr("step-00000020/" + file));
    EXPECT_THAT(log, HasSubstr("falling back to"));
  }

  std::string Path(const std::string& file) const { return folder_ / ("step-00000020/" + file); }

  void Change(const std::string& file, const std::function<void(std::string&)>& edit,
              const std::string& reason) {
    const std::string good = ReadBytes(Path(file));
    std::string bad = good;
    edit(bad);
    ASSERT_NE(bad, good) << file;
    WriteBytes(Path(file), bad);
    ExpectRefused(file, reason);
    WriteBytes(Path(file), good);
    EXPECT_TRUE(store_->LoadLatest(false).ok()) << "not restored";
  }

  TestFolder folder_;
  absl::StatusOr<CheckpointStore> store_;
};

const char* const kDataFiles[] = {"model.safetensors", "optimizer-0.safetensors",
                                  "optimizer-1.safetensors", "config.json"};

TEST_F(DamageTest, FlippedBits) {
  for (const std::string file : kDataFiles) {
    const size_t size = ReadBytes(Path(file)).size();
    for (size_t at : {size_t{0}, size / 2, size - 1}) {
      Change(
          file, [&](std::string& bytes) { bytes[at] = static_cast<char>(bytes[at] ^ 4); },
          "XXH3-128");
    }
  }
}

TEST_F(DamageTest, FlippedBitsOfTheManifest) {
  const std::string good = ReadBytes(Path("manifest.json"));
  for (size_t at = 0; at < good.size(); at += 7) {
    // A change between white space characters is none to JSON.
    if (good[at] == ' ' || good[at] == '\n') continue;
    Change(
        "manifest.json", [&](std::string& bytes) { bytes[at] = static_cast<char>(bytes[at] ^ 4); },
        "");
  }
}

TEST_F(DamageTest, TruncatedAndGrown) {
  for (const std::string file : kDataFiles) {
    const size_t size = ReadBytes(Path(file)).size();
    Change(
        file, [&](std::string& bytes) { bytes.resize(size - 1); },
        absl::StrCat(size - 1, " bytes, expected ", size));
    Change(
        file, [&](std::string& bytes) { bytes += '\0'; },
        absl::StrCat(size + 1, " bytes, expected ", size));
    Change(
        file, [&](std::string& bytes) { bytes.clear(); }, absl::StrCat("0 bytes, expected ", size));
    EXPECT_TRUE(store_->Load(20, CheckpointVerify::kSizes).ok());
  }
  Change(
      "manifest.json", [&](std::string& bytes) { bytes.resize(bytes.size() - 3); }, "byte");
  Change(
      "manifest.json", [&](std::string& bytes) { bytes.clear(); }, "byte 1");
}

TEST_F(DamageTest, ZeroedPage) {
  Change(
      "model.safetensors", [](std::string& bytes) { bytes.replace(4096, 4096, 4096, '\0'); },
      "XXH3-128");
}

TEST_F(DamageTest, MissingFiles) {
  for (const std::string file : kDataFiles) {
    const std::string good = ReadBytes(Path(file));
    fs::remove(Path(file));
    ExpectRefused(file, "is missing");
    WriteBytes(Path(file), good);
  }
  fs::remove(Path("manifest.json"));
  ExpectRefused("manifest.json", "No such file");
}

TEST_F(DamageTest, SwappedFiles) {
  const std::string first = ReadBytes(Path("optimizer-0.safetensors"));
  const std::string second = ReadBytes(Path("optimizer-1.safetensors"));
  ASSERT_EQ(first.size(), second.size());
  WriteBytes(Path("optimizer-0.safetensors"), second);
  WriteBytes(Path("optimizer-1.safetensors"), first);
  ExpectRefused("optimizer-0.safetensors", "XXH3-128");
}

TEST_F(DamageTest, LinksInPlaceOfFiles) {
  fs::rename(Path("config.json"), folder_ / "moved.json");
  fs::create_symlink(folder_ / "moved.json", Path("config.json"));
  ExpectRefused("config.json", "symbolic link");
  fs::remove(Path("config.json"));
  fs::create_directory(Path("config.json"));
  ExpectRefused("config.json", "not a regular file");
}

TEST_F(DamageTest, EditedManifest) {
  const auto replace = [](const std::string& from, const std::string& to) {
    return [=](std::string& text) { text = absl::StrReplaceAll(text, {{from, to}}); };
  };
  const char* file = "manifest.json";
  Change(file, replace("\"step\": 20", "\"step\": 21"), "was changed");
  Change(file, replace("\"attempt\": 1", "\"attempt\": 2"), "was changed");
  Change(file, replace("config.json", "../../config"), "was changed");
  Change(file, replace("\"bytes\"", "\"Bytes\""), "was changed");
  Change(file, replace("manifest_xxh3_128", "manifest_xxh3"), "was changed");
  Change(file, replace("\"format_version\": 1", "\"format_version\": 2"), "has format version 2");
  Change(file, replace("evenkeel-checkpoint", "other"), "is not a checkpoint's manifest");
  Change(
      file, [](std::string& text) { text = "[]"; }, "is not a checkpoint's manifest");
  Change(
      file, [](std::string& text) { text.insert(1, "\"step\": 20,"); }, "appears twice");
  Change(
      file, [](std::string& text) { text = std::string(100'000, '['); }, "nested");
  // A whole manifest, but of another step.
  const std::string other = ReadBytes(folder_ / "step-00000010/manifest.json");
  Change(
      file, [&](std::string& text) { text = other; }, "belongs to step 10");
}

TEST_F(DamageTest, FolderUnderAnotherStepsName) {
  fs::remove_all(folder_ / "step-00000020");
  fs::copy(folder_ / "step-00000010", folder_ / "step-00000020");
  ExpectRefused("manifest.json", "belongs to step 10");
}

TEST_F(DamageTest, NothingGoodLeft) {
  for (const char* step : {"step-00000010", "step-00000020"}) {
    fs::remove(folder_ / (std::string(step) + "/model.safetensors"));
  }
  for (bool fallback : {false, true}) {
    const absl::Status status = store_->LoadLatest(fallback).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
    EXPECT_THAT(std::string(status.message()), HasSubstr("step-00000020/model.safetensors"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("no good checkpoint"));
  }
}

TEST_F(DamageTest, SavingAgainRepairs) {
  fs::remove(Path("model.safetensors"));
  ASSERT_TRUE(store_->Save(SmallSave(20, 2, 2)).ok());
  const absl::StatusOr<OpenedCheckpoint> latest = store_->LoadLatest(false);
  ASSERT_TRUE(latest.ok()) << latest.status();
  ExpectSmallCheckpoint(*latest, 20, 2);
}

}  // namespace
}  // namespace evenkeel
