// The checkpoints of a run, and the promise that a crash at any moment leaves a good one.
//
//   checkpoints/step-00000020/            committed: what it holds is complete and was synced
//     manifest.json                       step, size and XXH3-128 of every file, the caller's state
//     model.safetensors ...
//   checkpoints/step-00000020.r1/         a later save of the same step, until it takes the name
//   checkpoints/step-00000040.tmp-<16 hex digits>/    being written, or being deleted
//
// A save writes into a .tmp- folder, syncs every file, the manifest and the folder, and commits by
// one rename, then syncs the parent. Deletion renames to .tmp- first. So a name without .tmp-
// always stands for a whole checkpoint, and only names without are ever loaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/checkpoint/file_io.h"
#include "runtime/checkpoint/safetensors_file.h"

namespace evenkeel {

// What a save writes into. Names are plain file names; "manifest.json" is the store's own.
class CheckpointFiles {
 public:
  // The folder, for files written by other ranks or other code before Save's callback returns. A
  // file that nobody adds is hashed by reading it back.
  const std::string& folder() const { return folder_; }

  absl::Status AddSafetensors(const std::string& name, absl::Span<const SafetensorsTensor> tensors);
  absl::Status AddText(const std::string& name, const std::string& text);

  // Declares a file that is already in the folder, with the digest its writer returned.
  absl::Status AddWritten(const std::string& name, FileDigest digest);

 private:
  friend class CheckpointStore;
  CheckpointFiles(std::string folder, const IoHook* hook)
      : folder_(std::move(folder)), hook_(hook) {}

  std::string folder_;
  const IoHook* hook_;
  std::map<std::string, FileDigest> digests_;
};

struct CheckpointSave {
  int64_t step = 0;
  std::string state_json = "{}";  // an object, given back on loading
  int keep_last = 1;              // at least 1
  int64_t estimated_bytes = 0;    // the save is refused at once if less than this is free
  std::function<absl::Status(CheckpointFiles&)> write;
};

struct OpenedCheckpoint {
  int64_t step = 0;
  std::string folder;
  std::string state_json;
  std::map<std::string, FileDigest> files;
};

enum class CheckpointVerify {
  kHashes,  // reads every byte
  kSizes,   // for ranks that follow one that has checked the hashes
};

enum class CheckpointAccess {
  kReadOnly,  // changes nothing; for eval, and for every rank but the one that saves
  // For the one process that saves, which must hold the run's RunLock: makes the folder, removes
  // what a crash left half-written, and sets SIGXFSZ to ignored for the whole process if it had its
  // default action, so that a file size limit fails a write instead of killing the run.
  kReadWrite,
};

// Errors carry ExitCode::kCheckpoint. A damaged checkpoint is kDataLoss with the file, what was
// expected and what was found.
class CheckpointStore {
 public:
  // `hook` may be null and must outlive the store.
  static absl::StatusOr<CheckpointStore> Open(const std::string& folder, CheckpointAccess access,
                                              const IoHook* hook = nullptr);

  // Saves and commits a checkpoint, then deletes committed ones of this and earlier steps but for
  // the newest `keep_last`; later steps are left alone. If anything fails before the commit (a full
  // disk, say), what was written is removed, every older checkpoint stays, and the next Save may
  // work again. Trouble in deleting is only logged. One caller at a time.
  absl::Status Save(const CheckpointSave& save);

  // The committed steps, ascending; their contents are not checked.
  absl::StatusOr<std::vector<int64_t>> Steps() const;

  // Opens the newest checkpoint after checking its hashes. If it is damaged: with `fallback`, warns
  // and goes on to the one before; without, fails and names the newest good one.
  absl::StatusOr<OpenedCheckpoint> LoadLatest(bool fallback) const;

  absl::StatusOr<OpenedCheckpoint> Load(int64_t step, CheckpointVerify verify) const;

  // Opens a checkpoint folder given by its path.
  static absl::StatusOr<OpenedCheckpoint> LoadFolder(const std::string& folder,
                                                     CheckpointVerify verify);

 private:
  // A committed folder. Ordered by step, then by revision.
  struct Commit {
    int64_t step;
    int64_t revision;
    std::string name;
    bool operator<(const Commit& other) const {
      return std::pair(step, revision) < std::pair(other.step, other.revision);
    }
  };

  CheckpointStore(std::string folder, const IoHook* hook)
      : folder_(std::move(folder)), hook_(hook) {}

  absl::StatusOr<std::vector<Commit>> Commits() const;  // ascending
  absl::Status RemoveTemporaries() const;
  absl::Status CheckFreeSpace(int64_t bytes) const;
  absl::Status WriteTemporary(const CheckpointSave& save, const std::string& temporary) const;
  absl::Status Prune(int64_t step, int keep_last) const;
  absl::Status Retire(const Commit& commit) const;
  absl::StatusOr<OpenedCheckpoint> LoadCommit(const Commit& commit, CheckpointVerify verify) const;

  std::string folder_;
  const IoHook* hook_;
};

}  // namespace evenkeel
