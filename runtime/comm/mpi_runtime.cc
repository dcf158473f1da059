#include "runtime/comm/mpi_runtime.h"

#include <utility>

#include "runtime/base/status_macros.h"
#include "runtime/comm/mpi_communicator.h"
#include "runtime/comm/mpi_context.h"

namespace evenkeel {

absl::StatusOr<MpiRuntime> MpiRuntime::Create(const MpiOptions& options) {
  EK_ASSIGN_OR_RETURN(std::shared_ptr<MpiContext> context, MpiContext::Create(options));
  MPI_Comm comm = MPI_COMM_NULL;
  EK_RETURN_IF_ERROR(ToStatus(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup"));
  int rank = 0, size = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  const auto id = static_cast<int>(context->next_communicator++);
  auto world = std::make_unique<MpiCommunicator>(comm, rank, size, id, "world", context);
  return MpiRuntime(std::move(context), std::move(world));
}

MpiRuntime::MpiRuntime(std::shared_ptr<MpiContext> context, std::unique_ptr<Communicator> world)
    : context_(std::move(context)), world_(std::move(world)) {}

MpiRuntime::MpiRuntime(MpiRuntime&&) noexcept = default;
MpiRuntime::~MpiRuntime() = default;

int MpiRuntime::local_rank() const {
  return context_->local_rank();
}
int MpiRuntime::local_size() const {
  return context_->local_size();
}
const std::string& MpiRuntime::host() const {
  return context_->host();
}

}  // namespace evenkeel
