#include "runtime/data/staged_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"

namespace evenkeel {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

absl::Status WriteError(const std::string& path, int error) {
  return DataError(absl::StrCat(path, ": cannot be written: ", std::strerror(error)));
}

std::filesystem::path FolderOf(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

}  // namespace

absl::StatusOr<StagedFile> StagedFile::Create(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(FolderOf(path), error);
  if (error) return WriteError(path, error.value());
  StagedFile file(path, UniqueFd());
  file.fd_ = UniqueFd(open(file.temporary_path().c_str(),
                           O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!file.fd_.valid()) return WriteError(file.temporary_path(), errno);
  return file;
}

StagedFile::~StagedFile() {
  if (fd_.valid()) unlink(temporary_path().c_str());
}

std::string StagedFile::temporary_path() const {
  return absl::StrCat(path_, ".tmp.", getpid());
}

absl::Status StagedFile::WriteAt(int64_t offset, const char* data, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t put = pwrite(fd_.get(), data, static_cast<size_t>(bytes), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return WriteError(path_, put < 0 ? errno : ENOSPC);
    data += put;
    offset += put;
    bytes -= put;
  }
  return absl::OkStatus();
}

absl::Status StagedFile::Flush() {
  const int64_t buffered = static_cast<int64_t>(buffer_.size());
  EK_RETURN_IF_ERROR(WriteAt(size_ - buffered, buffer_.data(), buffered));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status StagedFile::Append(const void* data, int64_t bytes) {
  buffer_.append(static_cast<const char*>(data), static_cast<size_t>(bytes));
  size_ += bytes;
  return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
}

absl::Status StagedFile::Overwrite(int64_t offset, const void* data, int64_t bytes) {
  EK_RETURN_IF_ERROR(Flush());
  return WriteAt(offset, static_cast<const char*>(data), bytes);
}

absl::Status StagedFile::ReadBack(int64_t offset, void* data, int64_t bytes) {
  EK_RETURN_IF_ERROR(Flush());
  char* out = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = pread(fd_.get(), out, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return DataError(absl::StrCat(path_, ": cannot be read back"));
    out += got;
    offset += got;
    bytes -= got;
  }
  return absl::OkStatus();
}

absl::Status StagedFile::Sync() {
  EK_RETURN_IF_ERROR(Flush());
  return fsync(fd_.get()) == 0 ? absl::OkStatus() : WriteError(path_, errno);
}

absl::Status StagedFile::Publish() {
  if (std::rename(temporary_path().c_str(), path_.c_str()) != 0) return WriteError(path_, errno);
  fd_ = UniqueFd();
  return absl::OkStatus();
}

absl::Status SyncFolderOf(const std::string& path) {
  const std::string folder = FolderOf(path).string();
  const UniqueFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || fsync(fd.get()) != 0) return WriteError(folder, errno);
  return absl::OkStatus();
}

}  // namespace evenkeel
