#include "launch/start_clock.h"

#include "absl/strings/str_format.h"

namespace evenkeel {

void StartClock::Lap(const std::string& what) {
  const Clock::time_point now = Clock::now();
  laps_.emplace_back(what, std::chrono::duration<double>(now - lap_).count());
  lap_ = now;
}

std::string StartClock::Text() const {
  constexpr double kLeast = 0.05;
  double sum = 0;
  std::string parts;
  for (const auto& [what, seconds] : laps_) {
    sum += seconds;
    if (seconds < kLeast) continue;
    absl::StrAppendFormat(&parts, "%s%s %.1f", parts.empty() ? ": " : ", ", what, seconds);
  }
  return absl::StrFormat("%.1f s%s", sum, parts);
}

}  // namespace evenkeel
