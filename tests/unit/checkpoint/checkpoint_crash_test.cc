// What a save survives: kill -9 at every system call, every call failing, a full disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/checkpoint/checkpoint_store.h"
#include "tests/unit/checkpoint/small_checkpoint.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr auto kReadWrite = CheckpointAccess::kReadWrite;

// What a run does after steps 10 and 20 are saved as attempt 1.
struct Scenario {
  const char* name;
  std::vector<int64_t> steps;  // saved as attempts 2, 3, ...
  int keep_last;
};

const Scenario kScenarios[] = {
    {"next step", {30}, 2},
    {"same step again", {20, 20}, 1},
    {"several steps, one kept", {30, 40, 50}, 1},
};

void MakeBase(const std::string& folder) {
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder, kReadWrite);
  ASSERT_TRUE(store.ok()) << store.status();
  for (int64_t step : {10, 20}) ASSERT_TRUE(store->Save(SmallSave(step, 1, 2)).ok());
}

// Runs the scenario; writes one byte to `progress` (if it is not -1) after each save that succeeds.
void RunScenario(const Scenario& scenario, const std::string& folder, const IoHook& hook,
                 int progress) {
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder, kReadWrite, &hook);
  if (!store.ok()) return;
  int attempt = 2;
  for (int64_t step : scenario.steps) {
    const absl::Status status = store->Save(SmallSave(step, attempt++, scenario.keep_last));
    if (status.ok() && progress >= 0) (void)!write(progress, "x", 1);
  }
}

int CountCalls(const Scenario& scenario, const std::string& base) {
  const TestFolder folder;
  fs::copy(base, folder.path(), fs::copy_options::recursive);
  int calls = 0;
  RunScenario(
      scenario, folder.path(), [&](const char*, const std::string&) { return ++calls, 0; }, -1);
  return calls;
}

// Returns the index in scenario.steps of the save that `opened` comes from, -1 for the base.
int IndexOf(const OpenedCheckpoint& opened) {
  const size_t colon = opened.state_json.find(':');
  return std::stoi(opened.state_json.substr(colon + 1)) - 2;
}

// Expects a good newest checkpoint from the save after the first `done`, or any later one.
void ExpectGood(const Scenario& scenario, const std::string& folder, int done) {
  absl::StatusOr<CheckpointStore> reader =
      CheckpointStore::Open(folder, CheckpointAccess::kReadOnly);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const absl::StatusOr<OpenedCheckpoint> before = reader->LoadLatest(false);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_FALSE(absl::StrContains(before->folder, ".tmp-"));
  const absl::StatusOr<std::vector<int64_t>> steps = reader->Steps();
  ASSERT_TRUE(steps.ok()) << steps.status();
  for (int64_t step : *steps) {
    EXPECT_TRUE(reader->Load(step, CheckpointVerify::kHashes).ok()) << "half of step " << step;
  }
  const int index = IndexOf(*before);
  EXPECT_GE(index, done - 1) << "a finished save is lost";
  ExpectSmallCheckpoint(*before, index < 0 ? 20 : scenario.steps[static_cast<size_t>(index)],
                        index < 0 ? 1 : index + 2);
  // The next start: temporaries go, the same checkpoint is found, and saving works.
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder, kReadWrite);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(CountTemporaries(folder), 0);
  const absl::StatusOr<OpenedCheckpoint> after = store->LoadLatest(false);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->folder, before->folder);
  const int64_t step = after->step;
  ASSERT_TRUE(store->Save(SmallSave(step, 9, 1)).ok());
  EXPECT_THAT(*store->Steps(), ::testing::ElementsAre(step));
  ExpectSmallCheckpoint(*store->LoadLatest(false), step, 9);
  EXPECT_EQ(ListFolder(folder)->size(), 1u) << "revisions are left over";
}

TEST(CheckpointCrash, KilledAtEverySystemCall) {
  const TestFolder base;
  MakeBase(base.path());
  int kills = 0;
  for (const Scenario& scenario : kScenarios) {
    const int calls = CountCalls(scenario, base.path());
    ASSERT_GE(calls, 20);
    for (int last = 1; last <= calls; ++last) {
      SCOPED_TRACE(absl::StrCat(scenario.name, ", killed at call ", last, " of ", calls));
      const TestFolder folder;
      fs::copy(base.path(), folder.path(), fs::copy_options::recursive);
      int progress[2];
      ASSERT_EQ(pipe(progress), 0);
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        int count = 0;
        const IoHook kill_at = [&](const char*, const std::string&) {
          if (++count == last) (void)raise(SIGKILL);
          return 0;
        };
        RunScenario(scenario, folder.path(), kill_at, progress[1]);
        _exit(0);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
      close(progress[1]);
      char bytes[16];
      const auto done = static_cast<int>(read(progress[0], bytes, sizeof(bytes)));
      close(progress[0]);
      ::testing::internal::CaptureStderr();
      ExpectGood(scenario, folder.path(), done);
      (void)::testing::internal::GetCapturedStderr();
      ++kills;
      if (HasFatalFailure()) return;
    }
  }
  std::printf("killed at %d points\n", kills);
}

TEST(CheckpointCrash, EverySystemCallFailing) {
  const TestFolder base;
  MakeBase(base.path());
  const int errors[] = {ENOSPC, EIO, EDQUOT, EROFS};
  for (const Scenario& scenario : kScenarios) {
    const int calls = CountCalls(scenario, base.path());
    // Only that call, or it and all after it.
    for (const bool lasting : {false, true}) {
      for (int first = 1; first <= calls; ++first) {
        SCOPED_TRACE(
            absl::StrCat(scenario.name, ", failing at call ", first, lasting ? " on" : ""));
        const TestFolder folder;
        fs::copy(base.path(), folder.path(), fs::copy_options::recursive);
        int count = 0, saved = 0, failed = 0;
        std::string failed_call;
        const IoHook fail_at = [&](const char* call, const std::string&) {
          ++count;
          if (count == first) failed_call = call;
          return count == first || (lasting && count > first) ? errors[first % 4] : 0;
        };
        ::testing::internal::CaptureStderr();
        {
          absl::StatusOr<CheckpointStore> store =
              CheckpointStore::Open(folder.path(), kReadWrite, &fail_at);
          ASSERT_TRUE(store.ok()) << store.status();
          for (size_t i = 0; i < scenario.steps.size(); ++i) {
            const absl::Status status = store->Save(
                SmallSave(scenario.steps[i], static_cast<int>(i) + 2, scenario.keep_last));
            if (status.ok()) saved = static_cast<int>(i) + 1;
            if (!status.ok()) {
              ++failed;
              EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckpoint);
            }
          }
          const bool cleaning = failed_call == "unlink" || failed_call == "rmdir";
          if (!lasting && !cleaning) {
            EXPECT_EQ(CountTemporaries(folder.path()), 0);
          }
          if (!lasting) {
            EXPECT_LE(failed, 1) << "one failure hinders later saves";
          }
        }
        ExpectGood(scenario, folder.path(), saved);
        (void)::testing::internal::GetCapturedStderr();
        if (HasFatalFailure()) return;
      }
    }
  }
}

// What a power failure may lose is what was not synced: the order of calls is the guarantee.
TEST(CheckpointCrash, SyncsBeforeItCommitsAndCommitsBeforeItDeletes) {
  const TestFolder folder;
  std::vector<std::pair<std::string, std::string>> calls;  // with names relative to the folder
  const IoHook record = [&](const char* call, const std::string& path) {
    calls.emplace_back(call, path.substr(std::min(path.size(), folder.path().size())));
    return 0;
  };
  absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder.path(), kReadWrite, &record);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(store->Save(SmallSave(10, 1, 1)).ok());
  calls.clear();
  ASSERT_TRUE(store->Save(SmallSave(20, 1, 1)).ok());
  const auto find = [&](const std::string& call, const std::string& end, bool in_temporary) {
    for (size_t i = 0; i < calls.size(); ++i) {
      const std::string& path = calls[i].second;
      if (calls[i].first == call && absl::EndsWith(path, end) &&
          absl::StartsWith(path, "/step-00000020.tmp-") == in_temporary) {
        return static_cast<int>(i);
      }
    }
    ADD_FAILURE() << "no " << call << " of " << end;
    return -1;
  };
  int commit = -1;
  for (size_t i = 0; i < calls.size(); ++i) {
    const auto& [call, path] = calls[i];
    if (call == "rename" && absl::StartsWith(path, "/step-00000020.tmp-") &&
        path.find('/', 1) == std::string::npos) {
      commit = static_cast<int>(i);
    }
  }
  ASSERT_GE(commit, 0);
  const int manifest = find("fsync", "/manifest.json", true);
  for (const char* file : {"/model.safetensors", "/config.json", "/optimizer-0.safetensors",
                           "/optimizer-1.safetensors"}) {
    EXPECT_LT(find("fsync", file, true), manifest);
  }
  // The folder itself, after its last file and right before the commit.
  EXPECT_EQ(calls[static_cast<size_t>(commit) - 1].first, "fsync");
  EXPECT_EQ(calls[static_cast<size_t>(commit) - 1].second,
            calls[static_cast<size_t>(commit)].second);
  EXPECT_LT(manifest, commit - 1);
  EXPECT_EQ(calls[static_cast<size_t>(commit) + 1], std::pair(std::string("fsync"), std::string()));
  for (int i = 0; i < commit + 2; ++i) {
    EXPECT_THAT(calls[static_cast<size_t>(i)].first,
                ::testing::AnyOf("mkdir", "open", "write", "fsync", "rename"));
    EXPECT_FALSE(absl::StartsWith(calls[static_cast<size_t>(i)].second, "/step-00000010"));
  }
}

// Runs `body` in a child process and returns its exit code, or 128 + the signal that ended it.
int RunInChild(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    const int code = body();
    std::fflush(nullptr);
    _exit(code);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// For children: gtest's assertions would report to nobody.
#define CHILD_EXPECT(condition)                                           \
  if (!(condition)) {                                                     \
    std::fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition); \
    return 1;                                                             \
  }

bool IsSmall(const absl::StatusOr<OpenedCheckpoint>& opened, int64_t step) {
  if (!opened.ok()) std::fprintf(stderr, "%s\n", opened.status().ToString().c_str());
  return opened.ok() && opened->step == step;
}

constexpr int kCannotMount = 77;

// Mounts an 8 MB tmpfs that only this process sees.
bool MountSmallDisk(const std::string& path) {
  if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  return mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         mount("tmpfs", path.c_str(), "tmpfs", 0, "size=8m") == 0;
}

TEST(CheckpointCrash, DiskFull) {
  const TestFolder folder;
  const int code = RunInChild([&]() -> int {
    if (!MountSmallDisk(folder.path())) return kCannotMount;
    const std::string path = folder / "checkpoints", ballast = folder / "ballast";
    absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(path, kReadWrite);
    CHILD_EXPECT(store.ok());
    constexpr int64_t kCount = 700'000;  // 2.8 MB: two fit, three do not
    CHILD_EXPECT(store->Save(SmallSave(10, 1, 2, kCount)).ok());
    CHILD_EXPECT(store->Save(SmallSave(20, 1, 2, kCount)).ok());
    for (int round = 0; round < 3; ++round) {
      const absl::Status full = store->Save(SmallSave(30, 1, 2, kCount));
      CHILD_EXPECT(absl::IsResourceExhausted(full));
      CHILD_EXPECT(ExitCodeOf(full) == ExitCode::kCheckpoint);
      CHILD_EXPECT(absl::StrContains(full.message(), "No space left on device"));
      CHILD_EXPECT(CountTemporaries(path) == 0);
      CHILD_EXPECT(store->Steps()->size() == 2);
      CHILD_EXPECT(IsSmall(store->LoadLatest(false), 20));
    }
    // Filled to the last byte by somebody else.
    std::FILE* file = std::fopen(ballast.c_str(), "w");
    (void)std::setvbuf(file, nullptr, _IONBF, 0);
    const std::string block(4096, 'x');
    while (std::fwrite(block.data(), block.size(), 1, file) == 1) {
    }
    (void)std::fclose(file);
    CHILD_EXPECT(!store->Save(SmallSave(30, 1, 2, 1)).ok());
    CHILD_EXPECT(CountTemporaries(path) == 0);
    // Refused before anything is written.
    CheckpointSave large = SmallSave(30, 1, 1, kCount);
    large.estimated_bytes = kCount * 4;
    const absl::Status refused = store->Save(large);
    CHILD_EXPECT(absl::StrContains(refused.message(), "not enough space"));
    CHILD_EXPECT(IsSmall(store->LoadLatest(false), 20));
    // With space again, saving works.
    CHILD_EXPECT(unlink(ballast.c_str()) == 0);
    fs::remove_all(path + "/step-00000010");
    CHILD_EXPECT(store->Save(large).ok());
    CHILD_EXPECT(IsSmall(store->LoadLatest(false), 30));
    CHILD_EXPECT(store->Steps()->size() == 1);
    return 0;
  });
  if (code == kCannotMount) {
    GTEST_SKIP() << "this process may not mount a tmpfs of its own";
  }
  EXPECT_EQ(code, 0);
}

TEST(CheckpointCrash, FileSizeLimit) {
  const TestFolder folder;
  const int code = RunInChild([&]() -> int {
    absl::StatusOr<CheckpointStore> store = CheckpointStore::Open(folder.path(), kReadWrite);
    CHILD_EXPECT(store.ok());
    CHILD_EXPECT(store->Save(SmallSave(10, 1, 1)).ok());
    const rlimit limit = {8192, RLIM_INFINITY};
    CHILD_EXPECT(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    const absl::Status status = store->Save(SmallSave(20, 1, 1));
    CHILD_EXPECT(absl::IsResourceExhausted(status));
    CHILD_EXPECT(absl::StrContains(status.message(), "File too large"));
    CHILD_EXPECT(CountTemporaries(folder.path()) == 0);
    CHILD_EXPECT(IsSmall(store->LoadLatest(false), 10));
    CHILD_EXPECT(store->Save(SmallSave(20, 1, 1, 100)).ok());
    return 0;
  });
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace evenkeel
