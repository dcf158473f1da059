#include "launch/failure_report.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
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

void RecordExitCode(ExitCode code) {
  const char* file = std::getenv("EVENKEEL_EXIT_FILE");
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (file == nullptr) return;
  // All is well when rank 0 says so.
  if (code == ExitCode::kOk && rank != nullptr && std::string(rank) != "0") return;
  const int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return;
  const std::string text = absl::StrCat(static_cast<int>(code), "\n");
  (void)!write(fd, text.data(), text.size());
  close(fd);
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
