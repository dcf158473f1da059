// A file that grows by whole records while a long job runs. What it records is never worth the job:
// a record that cannot be written (disk full, quota, file too large, I/O error) is dropped, warned
// about once, and the next is tried again.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace evenkeel {

class AppendFile {
 public:
  enum class Existing { kKeep, kReplace, kRefuse };

  // Opens or creates `path`. kRefuse: an existing file is AlreadyExists.
  static absl::StatusOr<AppendFile> Open(const std::string& path, Existing existing);

  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&& other) noexcept;
  ~AppendFile();

  // Hands the record to the system, so that it survives this process. A record written in part is
  // taken back: the file holds whole records only, unless the process is killed meanwhile.
  // Returns false if the record was dropped. SIGXFSZ must be ignored for a file size limit to be an
  // error and not the end of the process.
  bool Append(const std::string& record);

  // True if the file is empty or its last byte is a newline.
  bool AtLineStart() const;

 private:
  AppendFile(const std::string& path, int fd, int64_t size) : path_(path), fd_(fd), size_(size) {}

  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
  bool warned_ = false;
};

}  // namespace evenkeel
