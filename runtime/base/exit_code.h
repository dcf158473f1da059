// Exit codes of the program, and the error kinds they come from. A batch script acts on them.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace evenkeel {

enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,
  kUsage = 2,       // command line or config
  kData = 3,        // data set, tokenizer, input text
  kCheckpoint = 4,  // no usable checkpoint, or one that cannot be written
  kDiverged = 5,    // loss or gradient norm not finite
  kTimeout = 6,     // a collective did not finish in time
  kPeersLost = 7,
  kOutOfMemory = 8,
  kPreempted = 75,  // saved and left; start the same command again
};

// Attaches `code` to `status`, so that the program ends with it. OK stays OK.
absl::Status WithExitCode(absl::Status status, ExitCode code);

// Returns the attached code, or one derived from the status code (invalid argument: usage;
// deadline: time-out; unavailable: peers lost; resource exhausted: memory), or kInternal.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace evenkeel
