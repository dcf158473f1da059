#include "launch/run_folder.h"

#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/file_io.h"

namespace evenkeel {
namespace {

std::string StopPath(const std::string& folder) {
  return folder + "/STOP";
}

}  // namespace

absl::Status MakeFolders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return WithExitCode(
      absl::FailedPreconditionError(absl::StrCat(path, ": cannot make folder: ", error.message())),
      ExitCode::kUsage);
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  EK_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(path));
  EK_RETURN_IF_ERROR(writer.Write(text.data(), static_cast<int64_t>(text.size())));
  return writer.Commit(/*sync=*/false).status();
}

bool HasStopFile(const std::string& folder) {
  return access(StopPath(folder).c_str(), F_OK) == 0;
}

void RemoveStopFile(const std::string& folder) {
  (void)unlink(StopPath(folder).c_str());
}

}  // namespace evenkeel
