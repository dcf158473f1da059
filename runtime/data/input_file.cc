#include "runtime/data/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/data/data_error.h"

namespace evenkeel {

absl::StatusOr<InputFile> InputFile::Open(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info;
  if (!fd.valid() || fstat(fd.get(), &info) != 0) {
    return DataError(absl::StrCat(path, ": cannot be opened: ", std::strerror(errno)));
  }
  if (S_ISDIR(info.st_mode)) return DataError(absl::StrCat(path, ": is a directory, not a file"));
  const bool is_regular = S_ISREG(info.st_mode);
  return InputFile(path, std::move(fd), is_regular, is_regular ? info.st_size : 0);
}

absl::Status InputFile::ReadAt(int64_t offset, void* data, int64_t bytes) const {
  char* out = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = pread(fd_.get(), out, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return DataError(
          absl::StrCat(path_, ": cannot be read at byte ", offset, ": ", std::strerror(errno)));
    }
    if (got == 0) {
      return DataError(absl::StrCat(path_, ": ends at byte ", offset, ", ", bytes,
                                    " bytes early: it was truncated after it was opened (it had ",
                                    size_, " bytes)"));
    }
    out += got;
    offset += got;
    bytes -= got;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> InputFile::ReadNext(void* data, int64_t bytes) {
  for (;;) {
    const ssize_t got = read(fd_.get(), data, static_cast<size_t>(bytes));
    if (got >= 0) return got;
    if (errno != EINTR) {
      return DataError(absl::StrCat(path_, ": cannot be read: ", std::strerror(errno)));
    }
  }
}

}  // namespace evenkeel
