#include "runtime/base/exit_code.h"

#include <string>

#include "absl/strings/numbers.h"

namespace evenkeel {
namespace {

constexpr char kPayloadUrl[] = "evenkeel/exit_code";

}  // namespace

absl::Status WithExitCode(absl::Status status, ExitCode code) {
  if (!status.ok()) {
    status.SetPayload(kPayloadUrl, absl::Cord(std::to_string(static_cast<int>(code))));
  }
  return status;
}

ExitCode ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return ExitCode::kOk;
  int code = 0;
  if (auto payload = status.GetPayload(kPayloadUrl);
      payload.has_value() && absl::SimpleAtoi(std::string(*payload), &code)) {
    return static_cast<ExitCode>(code);
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return ExitCode::kUsage;
    case absl::StatusCode::kDeadlineExceeded:
      return ExitCode::kTimeout;
    case absl::StatusCode::kUnavailable:
      return ExitCode::kPeersLost;
    case absl::StatusCode::kResourceExhausted:
      return ExitCode::kOutOfMemory;
    default:
      return ExitCode::kInternal;
  }
}

}  // namespace evenkeel
