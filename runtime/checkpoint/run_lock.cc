#include "runtime/checkpoint/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

constexpr int64_t kMaxHolderBytes = 512;

// "host node7, process 4711, since 2026-08-23 18:04:05 UTC"
std::string DescribeThisRun() {
  char host[256] = "?";
  (void)gethostname(host, sizeof(host) - 1);
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  char start[32] = "?";
  if (gmtime_r(&now, &utc) != nullptr) {
    (void)std::strftime(start, sizeof(start), "%Y-%m-%d %H:%M:%S UTC", &utc);
  }
  return absl::StrCat("host ", host, ", process ", getpid(), ", since ", start);
}

// What the holder wrote about itself, as far as it can be printed.
std::string DescribeHolder(const FileDescriptor& file, const std::string& path) {
  absl::StatusOr<std::string> text = ReadText(file, path, kMaxHolderBytes);
  if (!text.ok()) return "an unknown process";
  std::string printable;
  for (char c : *text) {
    if (absl::ascii_isprint(static_cast<unsigned char>(c))) printable += c;
  }
  return printable.empty() ? "an unknown process" : printable;
}

}  // namespace

absl::StatusOr<RunLock> RunLock::Acquire(const std::string& run_folder) {
  const std::string path = absl::StrCat(run_folder, "/run.lock");
  FileDescriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (file.get() < 0) return IoError(errno, absl::StrCat("cannot open ", path));
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return WithExitCode(
          absl::FailedPreconditionError(
              absl::StrCat("another run is using ", run_folder, ": ", DescribeHolder(file, path))),
          ExitCode::kUsage);
    }
    if (errno != ENOLCK && errno != EOPNOTSUPP && errno != ENOSYS) {
      return IoError(errno, absl::StrCat("cannot lock ", path));
    }
    LogWarning(absl::StrCat("the file system of ", run_folder,
                            " has no locks: make sure that no other run uses it"));
  }
  // The lock is what counts; a full disk must not keep the run from starting.
  const std::string text = DescribeThisRun() + "\n";
  if (ftruncate(file.get(), 0) != 0 ||
      pwrite(file.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    LogWarning(absl::StrCat("cannot write ", path));
  }
  return RunLock(std::move(file));
}

}  // namespace evenkeel
