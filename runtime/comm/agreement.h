// Things that all ranks must agree on. All collective.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

// Returns every rank's text, in rank order.
absl::StatusOr<std::vector<std::string>> AllGatherStrings(Communicator& comm,
                                                          const std::string& mine,
                                                          const std::string& label);

// Returns rank `root`'s text.
absl::StatusOr<std::string> BroadcastString(Communicator& comm, const std::string& text, int root,
                                            const std::string& label);

// Fails on every rank with kFailedPrecondition (exit code kUsage) unless all pass the same value;
// names which ranks have which. `what`: "config", "version".
absl::Status AgreeOnString(Communicator& comm, const std::string& value, const std::string& what);

// Returns the same status on every rank: OK if all are OK; else the failure of the lowest rank that
// failed, with its exit code and, unless all say the same, its rank in the message. A request to
// stop (exit code kPreempted) yields to any other failure.
absl::Status AgreeOnStatus(Communicator& comm, const absl::Status& status,
                           const std::string& label);

}  // namespace evenkeel
