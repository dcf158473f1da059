#include "runtime/comm/launch_check.h"

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"

namespace evenkeel {
namespace {

// Returns the number in the variable, or `otherwise` if it is not set or not a number.
int ReadNumber(const GetEnvironment& get, const char* name, int otherwise) {
  const char* text = get(name);
  int value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

absl::Status Refuse(int world_size, const std::string& reason) {
  return WithExitCode(
      absl::InvalidArgumentError(absl::StrCat(
          "MPI sees ", world_size, " rank, but ", reason,
          ": each process would train a copy of its own. Start the job with the mpirun of the Open "
          "MPI that this program was built with (mpirun -np N evenkeel ...). To run on one rank on "
          "purpose, use mpirun -np 1.")),
      ExitCode::kUsage);
}

}  // namespace

bool IsStartedByLauncher(const GetEnvironment& get) {
  return get("OMPI_COMM_WORLD_SIZE") != nullptr || get("PMIX_RANK") != nullptr ||
         get("PMI_SIZE") != nullptr;
}

absl::Status CheckLaunch(int world_size, const GetEnvironment& get) {
  if (world_size != 1) return absl::OkStatus();
  // Open MPI's own variable is the launcher's word; what a batch system says around it is only how
  // large the job could be.
  if (const int asked = ReadNumber(get, "OMPI_COMM_WORLD_SIZE", 0); asked > 0) {
    if (asked == 1) return absl::OkStatus();
    return Refuse(world_size, absl::StrCat("OMPI_COMM_WORLD_SIZE is ", asked));
  }
  for (const char* name : {"PMI_SIZE", "WORLD_SIZE", "SLURM_NTASKS", "MV2_COMM_WORLD_SIZE"}) {
    if (const int asked = ReadNumber(get, name, 1); asked > 1) {
      return Refuse(world_size, absl::StrCat(name, " is ", asked));
    }
  }
  if (const int rank = ReadNumber(get, "PMIX_RANK", 0); rank > 0) {
    return Refuse(world_size, absl::StrCat("PMIX_RANK is ", rank));
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
