#include "runtime/checkpoint/checkpoint_store.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/checkpoint_manifest.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {
namespace {

constexpr char kStepPrefix[] = "step-";
constexpr char kTemporaryInfix[] = ".tmp-";

std::string StepName(int64_t step) {
  return absl::StrFormat("%s%08d", kStepPrefix, step);
}

// Takes decimal digits off the front of `text`; false if there are none or too many.
bool TakeNumber(std::string& text, int64_t& value) {
  const size_t end = std::min(text.find_first_not_of("0123456789"), text.size());
  if (end == 0 || !absl::SimpleAtoi(text.substr(0, end), &value)) return false;
  text.erase(0, end);
  return true;
}

// Reads "step-00000020" or "step-00000020.r1", in exactly the form this program writes.
bool ParseCommitName(const std::string& name, int64_t& step, int64_t& revision) {
  if (!absl::StartsWith(name, kStepPrefix)) return false;
  std::string rest = name.substr(sizeof(kStepPrefix) - 1);
  revision = 0;
  if (!TakeNumber(rest, step)) return false;
  if (rest.empty()) return name == StepName(step);
  if (!absl::StartsWith(rest, ".r")) return false;
  rest.erase(0, 2);
  return TakeNumber(rest, revision) && revision > 0 &&
         name == absl::StrCat(StepName(step), ".r", revision);
}

// "step-00000020.tmp-0123456789abcdef"
bool IsTemporaryName(const std::string& name) {
  const size_t infix = name.find(kTemporaryInfix);
  if (infix == std::string::npos) return false;
  const std::string nonce = name.substr(infix + sizeof(kTemporaryInfix) - 1);
  int64_t step = 0, revision = 0;
  return nonce.size() == 16 && nonce.find_first_not_of("0123456789abcdef") == std::string::npos &&
         ParseCommitName(name.substr(0, infix), step, revision) && revision == 0;
}

bool IsRealFolder(const std::string& path) {
  struct stat info;
  return lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

absl::Status Damaged(const std::string& what) {
  return CheckpointError(absl::StatusCode::kDataLoss, what);
}

absl::Status CheckFile(const FileDescriptor& folder, const std::string& folder_path,
                       const std::string& name, const FileDigest& expected,
                       CheckpointVerify verify) {
  const std::string path = absl::StrCat(folder_path, "/", name);
  absl::StatusOr<FileDescriptor> file = OpenFileIn(folder, folder_path, name);
  if (absl::IsNotFound(file.status())) {
    return Damaged(absl::StrCat(path, " is missing; ", expected.bytes, " bytes were expected"));
  }
  EK_RETURN_IF_ERROR(file.status());
  EK_ASSIGN_OR_RETURN(const int64_t bytes, SizeOfFile(*file, path));
  if (bytes != expected.bytes) {
    return Damaged(absl::StrCat(path, " is damaged: ", bytes, " bytes, expected ", expected.bytes));
  }
  if (verify == CheckpointVerify::kSizes) return absl::OkStatus();
  EK_ASSIGN_OR_RETURN(const FileDigest actual, HashFile(*file, path));
  if (actual.xxh3_128 != expected.xxh3_128) {
    return Damaged(absl::StrCat(path, " is damaged: XXH3-128 is ", actual.xxh3_128, ", expected ",
                                expected.xxh3_128));
  }
  return absl::OkStatus();
}

// Without `step`, whatever step the manifest says.
absl::StatusOr<OpenedCheckpoint> LoadVerified(const std::string& path, std::optional<int64_t> step,
                                              CheckpointVerify verify) {
  EK_ASSIGN_OR_RETURN(const FileDescriptor folder, OpenFolder(path));
  EK_ASSIGN_OR_RETURN(CheckpointManifest manifest, ReadManifest(folder, path));
  if (manifest.step != step.value_or(manifest.step)) {
    return Damaged(absl::StrCat(path, "/", kManifestName, " belongs to step ", manifest.step));
  }
  for (const auto& [name, digest] : manifest.files) {
    EK_RETURN_IF_ERROR(CheckFile(folder, path, name, digest, verify));
  }
  return OpenedCheckpoint{manifest.step, path, std::move(manifest.state_json),
                          std::move(manifest.files)};
}

}  // namespace

absl::Status CheckpointFiles::AddSafetensors(const std::string& name,
                                             absl::Span<const SafetensorsTensor> tensors) {
  EK_RETURN_IF_ERROR(CheckPlainName(name));
  SafetensorsWriteOptions options;
  options.hook = hook_;
  EK_ASSIGN_OR_RETURN(FileDigest digest,
                      WriteSafetensors(absl::StrCat(folder_, "/", name), tensors, options));
  return AddWritten(name, std::move(digest));
}

absl::Status CheckpointFiles::AddText(const std::string& name, const std::string& text) {
  EK_RETURN_IF_ERROR(CheckPlainName(name));
  EK_ASSIGN_OR_RETURN(FileWriter writer,
                      FileWriter::Create(absl::StrCat(folder_, "/", name), hook_));
  EK_RETURN_IF_ERROR(writer.Write(text.data(), static_cast<int64_t>(text.size())));
  EK_ASSIGN_OR_RETURN(FileDigest digest, writer.Commit(false));
  return AddWritten(name, std::move(digest));
}

absl::Status CheckpointFiles::AddWritten(const std::string& name, FileDigest digest) {
  EK_RETURN_IF_ERROR(CheckPlainName(name));
  if (name == kManifestName || !digests_.emplace(name, std::move(digest)).second) {
    return CheckpointError(absl::StatusCode::kInvalidArgument,
                           absl::StrCat("checkpoint file ", name, " is already there"));
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointStore> CheckpointStore::Open(const std::string& folder,
                                                      CheckpointAccess access, const IoHook* hook) {
  CheckpointStore store(folder, hook);
  if (access == CheckpointAccess::kReadOnly) {
    EK_RETURN_IF_ERROR(OpenFolder(folder).status());
    return store;
  }
  if (absl::IsNotFound(OpenFolder(folder).status())) {
    EK_RETURN_IF_ERROR(MakeFolder(folder, hook));
    EK_RETURN_IF_ERROR(SyncPath(ParentFolder(folder), hook));
  }
  EK_RETURN_IF_ERROR(OpenFolder(folder).status());
  struct sigaction current = {};
  if (sigaction(SIGXFSZ, nullptr, &current) == 0 && current.sa_handler == SIG_DFL) {
    (void)signal(SIGXFSZ, SIG_IGN);
  }
  EK_RETURN_IF_ERROR(store.RemoveTemporaries());
  return store;
}

absl::Status CheckpointStore::RemoveTemporaries() const {
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder_));
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(folder_, "/", name);
    if (!IsTemporaryName(name) || !IsRealFolder(path)) continue;
    LogWarning(absl::StrCat("removing ", path, ", left by a run that ended during a save"));
    if (absl::Status status = RemoveFolder(path, hook_); !status.ok()) {
      LogWarning(std::string(status.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CheckpointStore::Commit>> CheckpointStore::Commits() const {
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder_));
  std::vector<Commit> commits;
  for (const std::string& name : names) {
    Commit commit{0, 0, name};
    if (ParseCommitName(name, commit.step, commit.revision) &&
        IsRealFolder(absl::StrCat(folder_, "/", name))) {
      commits.push_back(commit);
    }
  }
  std::sort(commits.begin(), commits.end());
  return commits;
}

absl::StatusOr<std::vector<int64_t>> CheckpointStore::Steps() const {
  EK_ASSIGN_OR_RETURN(const std::vector<Commit> commits, Commits());
  std::vector<int64_t> steps;
  for (const Commit& commit : commits) {
    if (steps.empty() || steps.back() != commit.step) steps.push_back(commit.step);
  }
  return steps;
}

absl::Status CheckpointStore::CheckFreeSpace(int64_t bytes) const {
  struct statvfs info;
  if (statvfs(folder_.c_str(), &info) != 0) {
    return IoError(errno, absl::StrCat("cannot look at the file system of ", folder_));
  }
  const double free_bytes = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
  if (free_bytes >= static_cast<double>(bytes)) return absl::OkStatus();
  return CheckpointError(
      absl::StatusCode::kResourceExhausted,
      absl::StrCat("not enough space for a checkpoint in ", folder_, ": ", FormatBytes(bytes),
                   " needed, ", FormatBytes(static_cast<int64_t>(free_bytes)), " free"));
}

absl::Status CheckpointStore::WriteTemporary(const CheckpointSave& save,
                                             const std::string& temporary) const {
  CheckpointFiles files(temporary, hook_);
  EK_RETURN_IF_ERROR(save.write(files));
  EK_ASSIGN_OR_RETURN(const FileDescriptor folder, OpenFolder(temporary));
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(temporary));
  for (const std::string& name : names) {
    if (files.digests_.count(name) > 0) continue;
    EK_ASSIGN_OR_RETURN(const FileDescriptor file, OpenFileIn(folder, temporary, name));
    EK_ASSIGN_OR_RETURN(FileDigest digest, HashFile(file, absl::StrCat(temporary, "/", name)));
    EK_RETURN_IF_ERROR(files.AddWritten(name, std::move(digest)));
  }
  for (const auto& [name, digest] : files.digests_) {
    EK_RETURN_IF_ERROR(CheckFile(folder, temporary, name, digest, CheckpointVerify::kSizes));
    EK_RETURN_IF_ERROR(SyncPath(absl::StrCat(temporary, "/", name), hook_));
  }
  EK_RETURN_IF_ERROR(
      WriteManifest(temporary, {save.step, std::move(files.digests_), save.state_json}, hook_));
  EK_RETURN_IF_ERROR(SyncPath(absl::StrCat(temporary, "/", kManifestName), hook_));
  return SyncPath(temporary, hook_);
}

absl::Status CheckpointStore::Save(const CheckpointSave& save) {
  EK_CHECK(save.step >= 0 && save.keep_last >= 1 && save.write != nullptr)
      << "step " << save.step << ", keep_last " << save.keep_last;
  EK_RETURN_IF_ERROR(CheckFreeSpace(save.estimated_bytes));
  EK_ASSIGN_OR_RETURN(const std::vector<Commit> commits, Commits());
  std::string name = StepName(save.step);
  for (const Commit& commit : commits) {
    // Ascending: the last match has the highest revision.
    if (commit.step == save.step) {
      name = absl::StrCat(StepName(save.step), ".r", commit.revision + 1);
    }
  }
  const std::string temporary =
      absl::StrCat(folder_, "/", StepName(save.step), kTemporaryInfix, RandomNonce());
  EK_RETURN_IF_ERROR(MakeFolder(temporary, hook_));
  absl::Status status = WriteTemporary(save, temporary);
  if (status.ok()) status = RenamePath(temporary, absl::StrCat(folder_, "/", name), hook_);
  if (!status.ok()) {
    if (absl::Status removed = RemoveFolder(temporary, hook_); !removed.ok()) {
      LogWarning(std::string(removed.message()));
    }
    return CheckpointError(status.code(), absl::StrCat("checkpoint of step ", save.step,
                                                       " not saved: ", status.message()));
  }
  // Nothing old is touched before the new name is on disk.
  EK_RETURN_IF_ERROR(SyncPath(folder_, hook_));
  if (absl::Status pruned = Prune(save.step, save.keep_last); !pruned.ok()) {
    LogWarning(absl::StrCat("cannot delete old checkpoints: ", pruned.message()));
  }
  return absl::OkStatus();
}

absl::Status CheckpointStore::Prune(int64_t step, int keep_last) const {
  EK_ASSIGN_OR_RETURN(std::vector<Commit> commits, Commits());
  std::reverse(commits.begin(), commits.end());
  int kept = 0;
  int64_t last_kept = -1;
  for (const Commit& commit : commits) {
    if (commit.step > step) continue;
    if (kept < keep_last && commit.step != last_kept) {
      ++kept;
      last_kept = commit.step;
      continue;
    }
    EK_RETURN_IF_ERROR(Retire(commit));
  }
  for (const Commit& commit : commits) {
    if (commit.step == step && commit.revision > 0) {
      // The highest revision comes first, and the others are gone by now.
      EK_RETURN_IF_ERROR(RenamePath(absl::StrCat(folder_, "/", commit.name),
                                    absl::StrCat(folder_, "/", StepName(step)), hook_));
      return SyncPath(folder_, hook_);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckpointStore::Retire(const Commit& commit) const {
  const std::string temporary =
      absl::StrCat(folder_, "/", StepName(commit.step), kTemporaryInfix, RandomNonce());
  EK_RETURN_IF_ERROR(RenamePath(absl::StrCat(folder_, "/", commit.name), temporary, hook_));
  return RemoveFolder(temporary, hook_);
}

absl::StatusOr<OpenedCheckpoint> CheckpointStore::LoadFolder(const std::string& folder,
                                                             CheckpointVerify verify) {
  return LoadVerified(folder, std::nullopt, verify);
}

absl::StatusOr<OpenedCheckpoint> CheckpointStore::LoadCommit(const Commit& commit,
                                                             CheckpointVerify verify) const {
  return LoadVerified(absl::StrCat(folder_, "/", commit.name), commit.step, verify);
}

absl::StatusOr<OpenedCheckpoint> CheckpointStore::Load(int64_t step,
                                                       CheckpointVerify verify) const {
  EK_ASSIGN_OR_RETURN(std::vector<Commit> commits, Commits());
  std::reverse(commits.begin(), commits.end());
  for (const Commit& commit : commits) {
    if (commit.step == step) return LoadCommit(commit, verify);
  }
  return CheckpointError(absl::StatusCode::kNotFound,
                         absl::StrCat(folder_, " has no checkpoint of step ", step));
}

absl::StatusOr<OpenedCheckpoint> CheckpointStore::LoadLatest(bool fallback) const {
  EK_ASSIGN_OR_RETURN(std::vector<Commit> commits, Commits());
  if (commits.empty()) {
    return CheckpointError(absl::StatusCode::kNotFound, absl::StrCat("no checkpoint in ", folder_));
  }
  std::reverse(commits.begin(), commits.end());
  absl::Status newest;
  for (const Commit& commit : commits) {
    absl::StatusOr<OpenedCheckpoint> opened = LoadCommit(commit, CheckpointVerify::kHashes);
    if (opened.ok() && newest.ok()) return opened;
    if (opened.ok()) {
      if (!fallback) {
        return CheckpointError(newest.code(), absl::StrCat(newest.message(),
                                                           "; the newest good "
                                                           "checkpoint is ",
                                                           opened->folder));
      }
      LogWarning(absl::StrCat("falling back to ", opened->folder));
      return opened;
    }
    if (fallback) LogWarning(std::string(opened.status().message()));
    if (newest.ok()) newest = opened.status();
  }
  return CheckpointError(newest.code(),
                         absl::StrCat(newest.message(), "; no good checkpoint in ", folder_));
}

}  // namespace evenkeel
