// Files that survive crashes and do not trust what they read: whole-or-nothing writing with a hash,
// reading that never follows a link out of a folder, and errors that name the file.
// Every error of this folder carries ExitCode::kCheckpoint unless its header says otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct XXH3_state_s;

namespace evenkeel {

// Called before each system call that changes the file system, with its name ("open", "write",
// "fsync", "rename", "mkdir", "unlink", "rmdir") and the path. Returns 0 to go on, or the errno
// that the call is to fail with: faults are injected here, and a test kills the process here.
using IoHook = std::function<int(const char* call, const std::string& path)>;

struct FileDigest {
  int64_t bytes = 0;
  std::string xxh3_128;  // 32 hexadecimal digits, as `xxh128sum` prints them
};

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor();
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

// Returns "`what`: <text of error>". A full disk, a quota and a file size limit are
// kResourceExhausted, a missing file kNotFound, anything else kInternal.
absl::Status IoError(int error, const std::string& what);
absl::Status CheckpointError(absl::StatusCode code, const std::string& message);

// Opens an existing regular file whose path the user gave; links are followed.
absl::StatusOr<FileDescriptor> OpenFile(const std::string& path);
absl::StatusOr<FileDescriptor> OpenFolder(const std::string& path);

// Opens the regular file `name` of an open folder. `name` comes from a file and is not trusted: it
// must be plain (CheckPlainName) and not a symbolic link.
absl::StatusOr<FileDescriptor> OpenFileIn(const FileDescriptor& folder,
                                          const std::string& folder_path, const std::string& name);

// Fails unless `name` is 1 to 255 printable bytes without '/' and neither "." nor "..".
absl::Status CheckPlainName(const std::string& name);

absl::StatusOr<int64_t> SizeOfFile(const FileDescriptor& file, const std::string& path);

// Reads exactly `bytes` at `offset`. A file that ends before is kDataLoss.
absl::Status ReadAt(const FileDescriptor& file, const std::string& path, int64_t offset, void* data,
                    int64_t bytes);

// Reads a whole file of at most `max_bytes`.
absl::StatusOr<std::string> ReadText(const FileDescriptor& file, const std::string& path,
                                     int64_t max_bytes);

absl::StatusOr<FileDigest> HashFile(const FileDescriptor& file, const std::string& path);
std::string HashText(const std::string& text);

// A file that appears under its name whole, or not at all: it is written beside it as
// "<path>.tmp-<nonce>" and renamed. Without a commit the temporary file is removed.
class FileWriter {
 public:
  // `hook` may be null; it must outlive the writer.
  static absl::StatusOr<FileWriter> Create(const std::string& path, const IoHook* hook = nullptr);

  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&&) = delete;
  ~FileWriter();

  absl::Status Write(const void* data, int64_t bytes);

  // Renames the file into place; nothing may be written after. With `sync` it is on disk, under its
  // name, when this returns.
  absl::StatusOr<FileDigest> Commit(bool sync);

 private:
  struct FreeHash {
    void operator()(XXH3_state_s* state) const;
  };

  FileWriter(std::string path, std::string temporary, FileDescriptor file, const IoHook* hook);

  std::string path_;
  std::string temporary_;  // empty once there is nothing to remove
  FileDescriptor file_;
  const IoHook* hook_;
  int64_t bytes_ = 0;
  std::unique_ptr<XXH3_state_s, FreeHash> hash_;
};

// Names in a folder, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path);

absl::Status MakeFolder(const std::string& path, const IoHook* hook);
absl::Status RenamePath(const std::string& from, const std::string& to, const IoHook* hook);

// Makes a file's contents, or a folder's entries, durable.
absl::Status SyncPath(const std::string& path, const IoHook* hook);

// Removes a folder and the files in it, links as links; fails if it holds a folder.
absl::Status RemoveFolder(const std::string& path, const IoHook* hook);

// 16 random hexadecimal digits.
std::string RandomNonce();

// The folder of "a/b" is "a", of "b" it is ".".
std::string ParentFolder(const std::string& path);

}  // namespace evenkeel
