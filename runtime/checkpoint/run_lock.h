// One run folder, one run: two runs writing into one folder would mix their checkpoints and
// metrics.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/file_io.h"

namespace evenkeel {

// Holds `run.lock` of a run folder with flock(2) until it is destroyed or its process ends, however
// it ends: a lock left by a crashed run is free. The file stays behind; what it says (host,
// process, start time) is only for the message to the run that is refused. A child made by fork
// without exec shares the lock and keeps it alive.
//
// On NFS, Linux passes flock to the server, so runs on other hosts are seen, unless the mount has
// local_lock=flock or nolock: then only runs of the same host are. Where a file system has no locks
// at all (some Lustre mounts), a warning is logged and the run goes on.
class RunLock {
 public:
  // One rank of a run calls it. If another run holds the folder: kFailedPrecondition with
  // ExitCode::kUsage, naming the holder.
  static absl::StatusOr<RunLock> Acquire(const std::string& run_folder);

 private:
  explicit RunLock(FileDescriptor file) : file_(std::move(file)) {}

  FileDescriptor file_;
};

}  // namespace evenkeel
