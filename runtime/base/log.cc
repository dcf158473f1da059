#include "runtime/base/log.h"

#include <unistd.h>

#include <atomic>

namespace evenkeel {
namespace {

std::atomic<int> log_rank{-1};
std::atomic<bool> log_quiet{false};

}  // namespace

void InitLog(int rank, bool quiet) {
  log_rank.store(rank);
  log_quiet.store(quiet);
}

void Log(LogLevel level, const std::string& message) {
  if (level == LogLevel::kInfo && log_quiet.load()) return;
  std::string line = level == LogLevel::kError     ? "error: "
                     : level == LogLevel::kWarning ? "warning: "
                                                   : "";
  if (const int rank = log_rank.load(); rank >= 0 && (rank > 0 || level != LogLevel::kInfo)) {
    line = "[rank " + std::to_string(rank) + "] " + line;
  }
  line += message + "\n";
  // One write call a line: lines of several ranks on one terminal do not mix.
  (void)!write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace evenkeel
