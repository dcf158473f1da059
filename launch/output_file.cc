#include "launch/output_file.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/file_io.h"
#include "runtime/comm/agreement.h"

namespace evenkeel {
namespace {

// Opens and drops the temporary file that writing begins with, which asks more than permissions: a
// file system may be read-only or full.
absl::Status TryToWrite(const std::string& path) {
  const absl::Status status = FileWriter::Create(path).status();
  if (status.ok()) return status;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": cannot be written: ", std::string(status.message())));
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

absl::Status PrepareOutputFile(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  // Writing ends with a rename, which would put a file in the place of a device.
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be written: it is there, and is no file; name a file"));
  }
  EK_RETURN_IF_ERROR(MakeFolders(ParentFolder(path)));
  return TryToWrite(path);
}

absl::Status PrepareOutputFile(Communicator& comm, const std::string& path) {
  return AgreeOnStatus(comm, comm.rank() == 0 ? PrepareOutputFile(path) : absl::OkStatus(),
                       "output file");
}

absl::Status PrepareOutputFolder(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  EK_RETURN_IF_ERROR(MakeFolders(path));
  return TryToWrite(absl::StrCat(path, "/file"));
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  EK_ASSIGN_OR_RETURN(FileWriter writer, FileWriter::Create(path));
  EK_RETURN_IF_ERROR(writer.Write(text.data(), static_cast<int64_t>(text.size())));
  return writer.Commit(/*sync=*/false).status();
}

}  // namespace evenkeel
