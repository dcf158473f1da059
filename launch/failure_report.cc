#include "launch/failure_report.h"

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/cord.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"

namespace evenkeel {
namespace {

constexpr char kReportedUrl[] = "evenkeel/reported";
constexpr std::chrono::seconds kTurnOfRankZero(3);

bool IsReported(const absl::Status& status) {
  return status.ok() || status.GetPayload(kReportedUrl).has_value();
}

}  // namespace

absl::Status MarkReported(absl::Status status) {
  if (!status.ok()) status.SetPayload(kReportedUrl, absl::Cord());
  return status;
}

absl::Status ReportFailure(absl::Status status) {
  if (IsReported(status)) return status;
  const bool is_stop = ExitCodeOf(status) == ExitCode::kPreempted;
  Log(is_stop ? LogLevel::kInfo : LogLevel::kError, std::string(status.message()));
  return MarkReported(std::move(status));
}

void ReportFailureOnce(const absl::Status& status) {
  if (IsReported(status)) return;
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (rank != nullptr && std::string(rank) != "0") {
    std::this_thread::sleep_for(kTurnOfRankZero);
    InitLog(std::atoi(rank), /*quiet=*/false);
  }
  (void)ReportFailure(status);
}

}  // namespace evenkeel
