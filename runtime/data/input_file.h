// A file opened for reading. Reads are system calls, never a memory map: a file that shrinks while
// it is in use gives a named error where a map would kill the process with SIGBUS, and the page
// cache serves both alike.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/data/unique_fd.h"

namespace evenkeel {

class InputFile {
 public:
  // Fails with a data error if `path` cannot be opened or is a directory.
  static absl::StatusOr<InputFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  bool is_regular() const { return is_regular_; }
  int64_t size() const { return size_; }  // when it was opened; 0 for pipes

  // Reads exactly `bytes` bytes at `offset`. Safe from several threads.
  absl::Status ReadAt(int64_t offset, void* data, int64_t bytes) const;

  // Reads up to `bytes` bytes at the file's own position and returns how many; 0 at the end.
  absl::StatusOr<int64_t> ReadNext(void* data, int64_t bytes);

 private:
  InputFile(std::string path, UniqueFd fd, bool is_regular, int64_t size)
      : path_(std::move(path)), fd_(std::move(fd)), is_regular_(is_regular), size_(size) {}

  std::string path_;
  UniqueFd fd_;
  bool is_regular_;
  int64_t size_;
};

}  // namespace evenkeel
