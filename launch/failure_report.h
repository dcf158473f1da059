// Who says what went wrong, of ranks that often fail alike.
#pragma once

#include "absl/status/status.h"
#include "runtime/base/exit_code.h"

namespace evenkeel {

// Logs the message of `status`, unless it is OK or marked as reported: a request to stop as
// information, everything else as an error. Returns `status`, marked.
absl::Status ReportFailure(absl::Status status);

// Returns `status` marked as reported, by another rank.
absl::Status MarkReported(absl::Status status);

// Writes the code into the file that EVENKEEL_EXIT_FILE names, unless a rank has before; kOk counts
// from rank 0 alone. For launch/resilient.sh: an mpirun that outlives lost ranks ends with 0,
// and one that was interrupted with 1, whatever they say.
void RecordExitCode(ExitCode code);

// The last word of a process whose subcommand ended with `status`. Under mpirun, failures of before
// MPI started (a config that cannot be read) meet all ranks, mostly: rank 0 reports at once, and
// mpirun then ends the others. A rank that is still there seconds later reports too.
void ReportFailureOnce(const absl::Status& status);

}  // namespace evenkeel
