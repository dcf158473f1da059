#include "launch/model_folder.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/checkpoint_store.h"

namespace evenkeel {

absl::StatusOr<std::string> FindModelFolder(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path + "/manifest.json", error)) {
    EK_ASSIGN_OR_RETURN(const OpenedCheckpoint checkpoint,
                        CheckpointStore::LoadFolder(path, CheckpointVerify::kHashes));
    return checkpoint.folder;
  }
  if (std::filesystem::exists(path + "/config.json", error)) return path;
  if (std::filesystem::is_directory(path + "/checkpoints", error)) {
    EK_ASSIGN_OR_RETURN(const CheckpointStore store,
                        CheckpointStore::Open(path + "/checkpoints", CheckpointAccess::kReadOnly));
    EK_ASSIGN_OR_RETURN(const OpenedCheckpoint checkpoint, store.LoadLatest(/*fallback=*/true));
    return checkpoint.folder;
  }
  return CheckpointError(
      absl::StatusCode::kNotFound,
      absl::StrCat(path,
                   ": no model here: neither a run folder (with checkpoints/), nor a "
                   "checkpoint (manifest.json), nor a Hugging Face folder (config.json)"));
}

}  // namespace evenkeel
