#include "runtime/checkpoint/file_io.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;

int Before(const IoHook* hook, const char* call, const std::string& path) {
  return hook != nullptr && *hook ? (*hook)(call, path) : 0;
}

std::string HexOf(XXH128_hash_t hash) {
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

absl::StatusOr<FileDescriptor> CheckRegular(int fd, const std::string& path) {
  if (fd < 0) {
    if (errno == ELOOP) {
      return CheckpointError(absl::StatusCode::kInvalidArgument,
                             absl::StrCat(path,
                                          " is a symbolic link, which is not followed here; "
                                          "copy the file in its place"));
    }
    return IoError(errno, absl::StrCat("cannot open ", path));
  }
  FileDescriptor file(fd);
  struct stat info;
  if (fstat(fd, &info) != 0) return IoError(errno, absl::StrCat("cannot stat ", path));
  if (!S_ISREG(info.st_mode)) {
    return CheckpointError(absl::StatusCode::kInvalidArgument,
                           absl::StrCat(path, " is not a regular file"));
  }
  return file;
}

// O_NONBLOCK: opening a pipe must not wait for its writer.
constexpr int kReadFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) (void)close(fd_);
}

absl::Status CheckpointError(absl::StatusCode code, const std::string& message) {
  return WithExitCode(absl::Status(code, message), ExitCode::kCheckpoint);
}

absl::Status IoError(int error, const std::string& what) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return CheckpointError(full              ? absl::StatusCode::kResourceExhausted
                         : error == ENOENT ? absl::StatusCode::kNotFound
                                           : absl::StatusCode::kInternal,
                         absl::StrCat(what, ": ", std::strerror(error)));
}

absl::StatusOr<FileDescriptor> OpenFile(const std::string& path) {
  return CheckRegular(open(path.c_str(), kReadFlags), path);
}

absl::StatusOr<FileDescriptor> OpenFolder(const std::string& path) {
  FileDescriptor folder(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY));
  if (folder.get() < 0) return IoError(errno, absl::StrCat("cannot open folder ", path));
  return folder;
}

absl::StatusOr<FileDescriptor> OpenFileIn(const FileDescriptor& folder,
                                          const std::string& folder_path, const std::string& name) {
  if (absl::Status status = CheckPlainName(name); !status.ok()) {
    return CheckpointError(status.code(), absl::StrCat(folder_path, ": ", status.message()));
  }
  const std::string path = absl::StrCat(folder_path, "/", name);
  return CheckRegular(openat(folder.get(), name.c_str(), kReadFlags | O_NOFOLLOW), path);
}

absl::Status CheckPlainName(const std::string& name) {
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
  });
  if (name.empty() || name.size() > 255 || name == "." || name == ".." || !printable ||
      name.find('/') != std::string::npos) {
    return CheckpointError(
        absl::StatusCode::kInvalidArgument,
        absl::StrCat("\"", printable ? name.substr(0, 80) : "?", "\" is not a plain file name"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SizeOfFile(const FileDescriptor& file, const std::string& path) {
  struct stat info;
  if (fstat(file.get(), &info) != 0) return IoError(errno, absl::StrCat("cannot stat ", path));
  return static_cast<int64_t>(info.st_size);
}

absl::Status ReadAt(const FileDescriptor& file, const std::string& path, int64_t offset, void* data,
                    int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    const ssize_t count = pread(file.get(), static_cast<char*>(data) + done,
                                static_cast<size_t>(bytes - done), offset + done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return IoError(errno, absl::StrCat("cannot read ", path, " at byte ", offset + done));
    }
    if (count == 0) {
      return CheckpointError(absl::StatusCode::kDataLoss,
                             absl::StrCat(path, " ends at byte ", offset + done, "; ",
                                          offset + bytes, " bytes were expected"));
    }
    done += count;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const FileDescriptor& file, const std::string& path,
                                     int64_t max_bytes) {
  EK_ASSIGN_OR_RETURN(const int64_t bytes, SizeOfFile(file, path));
  if (bytes > max_bytes) {
    return CheckpointError(
        absl::StatusCode::kInvalidArgument,
        absl::StrCat(path, " has ", bytes, " bytes; at most ", max_bytes, " are read"));
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  EK_RETURN_IF_ERROR(ReadAt(file, path, 0, text.data(), bytes));
  return text;
}

absl::StatusOr<FileDigest> HashFile(const FileDescriptor& file, const std::string& path) {
  EK_ASSIGN_OR_RETURN(const int64_t bytes, SizeOfFile(file, path));
  (void)posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                        XXH3_freeState);
  (void)XXH3_128bits_reset(state.get());
  std::vector<char> chunk(static_cast<size_t>(std::min(bytes, kChunkBytes)));
  for (int64_t done = 0; done < bytes;) {
    const int64_t count = std::min(kChunkBytes, bytes - done);
    EK_RETURN_IF_ERROR(ReadAt(file, path, done, chunk.data(), count));
    (void)XXH3_128bits_update(state.get(), chunk.data(), static_cast<size_t>(count));
    done += count;
  }
  return FileDigest{bytes, HexOf(XXH3_128bits_digest(state.get()))};
}

std::string HashText(const std::string& text) {
  return HexOf(XXH3_128bits(text.data(), text.size()));
}

void FileWriter::FreeHash::operator()(XXH3_state_s* state) const {
  (void)XXH3_freeState(state);
}

FileWriter::FileWriter(std::string path, std::string temporary, FileDescriptor file,
                       const IoHook* hook)
    : path_(std::move(path)),
      temporary_(std::move(temporary)),
      file_(std::move(file)),
      hook_(hook),
      hash_(XXH3_createState()) {
  (void)XXH3_128bits_reset(hash_.get());
}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, std::string())),
      file_(std::move(other.file_)),
      hook_(other.hook_),
      bytes_(other.bytes_),
      hash_(std::move(other.hash_)) {}

FileWriter::~FileWriter() {
  if (temporary_.empty()) return;
  if (Before(hook_, "unlink", temporary_) == 0) (void)unlink(temporary_.c_str());
}

absl::StatusOr<FileWriter> FileWriter::Create(const std::string& path, const IoHook* hook) {
  const std::string temporary = absl::StrCat(path, ".tmp-", RandomNonce());
  if (const int error = Before(hook, "open", temporary); error != 0) {
    return IoError(error, absl::StrCat("cannot create ", temporary));
  }
  FileDescriptor file(
      open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (file.get() < 0) return IoError(errno, absl::StrCat("cannot create ", temporary));
  return FileWriter(path, temporary, std::move(file), hook);
}

absl::Status FileWriter::Write(const void* data, int64_t bytes) {
  const char* next = static_cast<const char*>(data);
  for (int64_t left = bytes; left > 0;) {
    const int64_t want = std::min(left, kChunkBytes);
    const int error = Before(hook_, "write", path_);
    const ssize_t count = error == 0 ? write(file_.get(), next, static_cast<size_t>(want)) : -1;
    if (count < 0) {
      if (error == 0 && errno == EINTR) continue;
      return IoError(error != 0 ? error : errno,
                     absl::StrCat("cannot write ", path_, " at byte ", bytes_));
    }
    (void)XXH3_128bits_update(hash_.get(), next, static_cast<size_t>(count));
    next += count;
    left -= count;
    bytes_ += count;
  }
  return absl::OkStatus();
}

absl::StatusOr<FileDigest> FileWriter::Commit(bool sync) {
  EK_CHECK(!temporary_.empty()) << path_ << " committed twice";
  if (sync) EK_RETURN_IF_ERROR(SyncPath(temporary_, hook_));
  // Some file systems report a failed write only when the file is closed.
  if (close(file_.Release()) != 0) return IoError(errno, absl::StrCat("cannot write ", path_));
  EK_RETURN_IF_ERROR(RenamePath(temporary_, path_, hook_));
  temporary_.clear();
  if (sync) EK_RETURN_IF_ERROR(SyncPath(ParentFolder(path_), hook_));
  return FileDigest{bytes_, HexOf(XXH3_128bits_digest(hash_.get()))};
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(path.c_str()), closedir);
  if (folder == nullptr) return IoError(errno, absl::StrCat("cannot list ", path));
  std::vector<std::string> names;
  while (const dirent* entry = readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status MakeFolder(const std::string& path, const IoHook* hook) {
  int error = Before(hook, "mkdir", path);
  if (error == 0 && mkdir(path.c_str(), 0755) != 0) error = errno;
  return error == 0 ? absl::OkStatus() : IoError(error, absl::StrCat("cannot make folder ", path));
}

absl::Status RenamePath(const std::string& from, const std::string& to, const IoHook* hook) {
  int error = Before(hook, "rename", from);
  if (error == 0 && rename(from.c_str(), to.c_str()) != 0) error = errno;
  return error == 0 ? absl::OkStatus()
                    : IoError(error, absl::StrCat("cannot rename ", from, " to ", to));
}

absl::Status SyncPath(const std::string& path, const IoHook* hook) {
  int error = Before(hook, "fsync", path);
  if (error == 0) {
    const FileDescriptor file(open(path.c_str(), kReadFlags | O_NOFOLLOW));
    if (file.get() < 0 || fsync(file.get()) != 0) error = errno;
    // Some file systems cannot sync a folder; there is nothing more to be done on them.
    if (error == EINVAL) error = 0;
  }
  return error == 0 ? absl::OkStatus() : IoError(error, absl::StrCat("cannot sync ", path));
}

absl::Status RemoveFolder(const std::string& path, const IoHook* hook) {
  const FileDescriptor folder(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY | O_NOFOLLOW));
  if (folder.get() < 0) return IoError(errno, absl::StrCat("cannot remove ", path));
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(path));
  for (const std::string& name : names) {
    int error = Before(hook, "unlink", absl::StrCat(path, "/", name));
    if (error == 0 && unlinkat(folder.get(), name.c_str(), 0) != 0) error = errno;
    if (error != 0) return IoError(error, absl::StrCat("cannot remove ", path, "/", name));
  }
  int error = Before(hook, "rmdir", path);
  if (error == 0 && rmdir(path.c_str()) != 0) error = errno;
  return error == 0 ? absl::OkStatus() : IoError(error, absl::StrCat("cannot remove ", path));
}

std::string RandomNonce() {
  uint64_t bits = 0;
  EK_CHECK(getrandom(&bits, sizeof(bits), 0) == static_cast<ssize_t>(sizeof(bits)));
  return absl::StrFormat("%016x", bits);
}

std::string ParentFolder(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace evenkeel
