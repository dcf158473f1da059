#include "runtime/metrics/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"

namespace evenkeel {

absl::StatusOr<AppendFile> AppendFile::Open(const std::string& path, Existing existing) {
  int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC;
  if (existing == Existing::kReplace) flags |= O_TRUNC;
  if (existing == Existing::kRefuse) flags |= O_EXCL;
  const int fd = open(path.c_str(), flags, 0644);
  if (fd < 0) {
    const int error = errno;
    const std::string message = absl::StrCat("cannot open ", path, ": ", std::strerror(error));
    return error == EEXIST ? absl::AlreadyExistsError(message) : absl::InternalError(message);
  }
  struct stat info = {};
  const int64_t size = fstat(fd, &info) == 0 ? info.st_size : 0;
  return AppendFile(path, fd, size);
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      warned_(other.warned_) {}

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  std::swap(warned_, other.warned_);
  return *this;
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) (void)close(fd_);
}

bool AppendFile::Append(const std::string& record) {
  size_t written = 0;
  while (written < record.size()) {
    const ssize_t count = write(fd_, record.data() + written, record.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const int error = count < 0 ? errno : ENOSPC;
      if (written > 0) (void)!ftruncate(fd_, size_);
      if (!std::exchange(warned_, true)) {
        LogWarning(absl::StrCat("cannot write ", path_, ": ", std::strerror(error),
                                "; the run goes on and this file will have gaps"));
      }
      return false;
    }
    written += static_cast<size_t>(count);
  }
  size_ += static_cast<int64_t>(record.size());
  return true;
}

bool AppendFile::AtLineStart() const {
  char last = '\n';
  if (size_ > 0) (void)!pread(fd_, &last, 1, size_ - 1);
  return last == '\n';
}

}  // namespace evenkeel
