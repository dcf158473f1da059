#include "runtime/metrics/metrics_log.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/metrics/text_escape.h"

namespace evenkeel {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr std::array<const char*, 5> kReservedNames = {"v", "t", "event", "step", "nonfinite"};

bool IsReserved(const std::string& name) {
  return std::find(kReservedNames.begin(), kReservedNames.end(), name) != kReservedNames.end();
}

struct ParsedLine {
  std::string event;
  MetricsRow row;
};

std::optional<ParsedLine> ParseLine(const std::string& text) {
  const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return std::nullopt;
  const auto version = line.find("v"), time = line.find("t");
  const auto event = line.find("event"), step = line.find("step");
  if (version == line.end() || *version != kVersion) return std::nullopt;
  if (event == line.end() || !event->is_string()) return std::nullopt;
  if (step == line.end() || !step->is_number_integer()) return std::nullopt;
  ParsedLine parsed;
  parsed.event = event->get<std::string>();
  parsed.row.step = step->get<int64_t>();
  if (time != line.end() && time->is_number()) parsed.row.unix_seconds = time->get<double>();
  for (const auto& [name, value] : line.items()) {
    if (IsReserved(name)) continue;
    if (value.is_number_integer()) {
      parsed.row.values.push_back({name, value.get<int64_t>()});
    } else if (value.is_number()) {
      parsed.row.values.push_back({name, value.get<double>()});
    } else if (value.is_null()) {
      parsed.row.values.push_back({name, std::numeric_limits<double>::quiet_NaN()});
    } else if (value.is_string()) {
      parsed.row.values.push_back({name, value.get<std::string>()});
    }
  }
  return parsed;
}

}  // namespace

const char* NameOf(MetricEvent event) {
  switch (event) {
    case MetricEvent::kTrain:
      return "train";
    case MetricEvent::kEval:
      return "eval";
    case MetricEvent::kCheckpoint:
      return "checkpoint";
    case MetricEvent::kResume:
      return "resume";
    case MetricEvent::kFault:
      return "fault";
  }
  return "?";
}

std::string MetricsLine(MetricEvent event, int64_t step, double unix_seconds,
                        absl::Span<const MetricValue> values) {
  std::string line = absl::StrFormat("{\"v\":%d,\"t\":%.3f,\"event\":\"%s\",\"step\":%d", kVersion,
                                     unix_seconds, NameOf(event), step);
  std::vector<std::string> nonfinite;
  for (const MetricValue& value : values) {
    EK_CHECK(!IsReserved(value.name)) << "metric named " << value.name;
    const std::string name = JsonString(value.name);
    absl::StrAppend(&line, ",", name, ":", JsonValue(value));
    const auto* number = std::get_if<double>(&value.value);
    if (number != nullptr && !std::isfinite(*number)) nonfinite.push_back(name);
  }
  if (!nonfinite.empty()) {
    absl::StrAppend(&line, ",\"nonfinite\":[", absl::StrJoin(nonfinite, ","), "]");
  }
  return line + "}\n";
}

absl::StatusOr<MetricsLog> MetricsLog::Open(const std::string& path) {
  EK_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, AppendFile::Existing::kKeep));
  if (!file.AtLineStart()) file.Append("\n");
  return MetricsLog(std::move(file));
}

void MetricsLog::Write(MetricEvent event, int64_t step, absl::Span<const MetricValue> values) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  file_.Append(MetricsLine(event, step, now.count(), values));
}

absl::StatusOr<MetricsHistory> ReadMetrics(const std::string& path, MetricEvent event) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  MetricsHistory history;
  const std::string wanted = NameOf(event), resume = NameOf(MetricEvent::kResume);
  std::string text;
  while (std::getline(file, text)) {
    if (text.empty()) continue;
    std::optional<ParsedLine> line = ParseLine(text);
    if (!line) {
      ++history.skipped_lines;
      continue;
    }
    if (line->event == resume) {
      const int64_t restored = line->row.step;
      std::erase_if(history.rows,
                    [&](const MetricsRow& row) { return restored == 0 || row.step > restored; });
    }
    if (line->event == wanted) history.rows.push_back(std::move(line->row));
  }
  if (file.bad()) return absl::InternalError(absl::StrCat("error while reading ", path));
  return history;
}

MetricSeries SeriesOf(const MetricsHistory& history, const std::string& name) {
  MetricSeries series;
  for (const MetricsRow& row : history.rows) {
    for (const MetricValue& value : row.values) {
      if (value.name != name || std::holds_alternative<std::string>(value.value)) continue;
      const auto* integer = std::get_if<int64_t>(&value.value);
      series.steps.push_back(static_cast<double>(row.step));
      series.values.push_back(integer ? static_cast<double>(*integer)
                                      : std::get<double>(value.value));
    }
  }
  return series;
}

}  // namespace evenkeel
