// MPI's life in this process, and the group of all its ranks.
//
// What ends a job: when a rank fails it reports, calls world().Abort(code), and mpirun ends the
// others. When mpirun itself dies, its ranks on this host are killed at once by the kernel.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

class MpiContext;

struct MpiOptions {
  // How long a blocking wait on peers may take.
  double timeout_s = 300;
};

// Movable, not copyable. Communicators split from world() may outlive it; MPI is finalised with the
// last of them. All ranks create and destroy it together. If a time-out has left a call unfinished,
// destruction ends the job with exit code kTimeout instead: MPI cannot be finalised any more.
class MpiRuntime {
 public:
  // Initialises MPI (or joins an initialised one, which it will not finalise) and duplicates its
  // world. Call before threads are started. Collective; CheckLaunch() is the caller's next step.
  static absl::StatusOr<MpiRuntime> Create(const MpiOptions& options);

  MpiRuntime(MpiRuntime&&) noexcept;
  MpiRuntime& operator=(MpiRuntime&&) = delete;
  ~MpiRuntime();

  Communicator& world() { return *world_; }
  // This rank among those on the same host, and their number.
  int local_rank() const;
  int local_size() const;
  const std::string& host() const;

 private:
  MpiRuntime(std::shared_ptr<MpiContext> context, std::unique_ptr<Communicator> world);

  // Shared with the communicators, which use its status board and must be gone before MPI is.
  std::shared_ptr<MpiContext> context_;
  std::unique_ptr<Communicator> world_;
};

}  // namespace evenkeel
