// A file that is written under a temporary name and appears under its own only when it is whole:
// append, then Sync (its bytes are on the disk), then Publish (one rename). A file that is never
// published is removed.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/data/unique_fd.h"

namespace evenkeel {

class StagedFile {
 public:
  // Opens PATH.tmp.PID for writing; makes the folder if there is none.
  static absl::StatusOr<StagedFile> Create(const std::string& path);

  StagedFile(StagedFile&&) = default;
  StagedFile& operator=(StagedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    std::swap(buffer_, other.buffer_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~StagedFile();

  int64_t size() const { return size_; }

  // Adds bytes at the end; they may stay in a buffer until Sync.
  absl::Status Append(const void* data, int64_t bytes);

  // Replaces or reads back bytes that were appended before.
  absl::Status Overwrite(int64_t offset, const void* data, int64_t bytes);
  absl::Status ReadBack(int64_t offset, void* data, int64_t bytes);

  absl::Status Sync();
  absl::Status Publish();

 private:
  StagedFile(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  std::string temporary_path() const;
  absl::Status Flush();
  absl::Status WriteAt(int64_t offset, const char* data, int64_t bytes);

  std::string path_;
  UniqueFd fd_;  // valid until published
  std::string buffer_;
  int64_t size_ = 0;  // the buffer included
};

// Makes the renames and removals in the folder of `path` last through a power cut.
absl::Status SyncFolderOf(const std::string& path);

}  // namespace evenkeel
