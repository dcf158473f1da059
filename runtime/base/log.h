// Log lines on standard error, prefixed with the rank. Progress and results go to standard output
// and are not log lines.
#pragma once

#include <string>

namespace evenkeel {

enum class LogLevel { kInfo, kWarning, kError };

// Sets the rank shown in front of each line, and whether lines below kWarning are dropped (every
// rank but 0 drops them). Call once, before other threads log.
void InitLog(int rank, bool quiet);

// Writes one line; safe from several threads.
void Log(LogLevel level, const std::string& message);

inline void LogInfo(const std::string& message) {
  Log(LogLevel::kInfo, message);
}
inline void LogWarning(const std::string& message) {
  Log(LogLevel::kWarning, message);
}
inline void LogError(const std::string& message) {
  Log(LogLevel::kError, message);
}

}  // namespace evenkeel
