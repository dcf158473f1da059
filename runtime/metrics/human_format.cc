#include "runtime/metrics/human_format.h"

#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace evenkeel {

std::string FormatDuration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e15) return "--";
  if (seconds == 0) return "0s";
  if (seconds < 0.9995) return absl::StrFormat("%.0fms", seconds * 1000);
  if (seconds < 9.95) return absl::StrFormat("%.1fs", seconds);
  // Rounded to the smaller unit shown before it is split, so that 59.7 s is 1m00s, never 60s.
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return absl::StrFormat("%ds", whole);
  if (whole < 3600) return absl::StrFormat("%dm%02ds", whole / 60, whole % 60);
  const int64_t minutes = std::llround(seconds / 60);
  if (minutes < 24 * 60) return absl::StrFormat("%dh%02dm", minutes / 60, minutes % 60);
  const int64_t hours = std::llround(seconds / 3600);
  return absl::StrFormat("%dd%02dh", hours / 24, hours % 24);
}

std::string FormatCount(double count) {
  if (std::isnan(count)) return "nan";
  if (std::isinf(count)) return count < 0 ? "-inf" : "inf";
  if (count < 0) return absl::StrCat("-", FormatCount(-count));
  if (count < 999.5) {
    if (count == std::floor(count)) return absl::StrFormat("%.0f", count);
    return absl::StrFormat("%.*f", count < 9.995 ? 2 : count < 99.95 ? 1 : 0, count);
  }
  const char* suffix = "kMBT";
  double scaled = count / 1000;
  for (; scaled >= 999.5 && suffix[1] != '\0'; ++suffix) scaled /= 1000;
  if (scaled >= 999.5) return absl::StrFormat("%.2e", count);
  return absl::StrFormat("%.*f%c", scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0, scaled, *suffix);
}

}  // namespace evenkeel
