// What `evenkeel simulate` found, as text, JSON and pictures.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launch/simulate_study.h"
#include "nlohmann/json_fwd.hpp"

namespace evenkeel {

struct PublishedRange {
  double low = 0;
  double high = 0;
};

// One case under every system that has a layout for it.
struct StudyReport {
  SimCase study;
  std::map<SimSystem, SimResult> systems;
  std::map<SimSystem, std::string> absent;  // why a system has none
  // The same as disaggregated, but for one thing.
  struct Variant {
    std::string name;
    SimResult result;
  };
  std::vector<Variant> variants;
  std::vector<Variant> tolerances;          // named by their tolerance
  std::optional<PublishedRange> published;  // speed-up over the balanced baseline
  std::optional<double> published_seconds;  // of the disaggregated step

  // Of the disaggregated step over `system`; none without both.
  std::optional<double> SpeedUp(SimSystem system) const;
};

// Runs the systems, each with its best layout. At least one has a layout.
absl::StatusOr<StudyReport> RunStudy(const SimCase& study, const std::vector<SimSystem>& systems,
                                     ThreadPool* threads);

// Adds one stream, signal, tasks left where they are, and a sweep of tolerances, all in the layout
// that was best.
absl::Status AddAblations(const std::vector<double>& tolerances, ThreadPool* threads,
                          StudyReport* report);

// One case in full.
std::string StudyText(const StudyReport& report);
// A row a case.
std::string StudyTable(const std::string& title, const std::vector<StudyReport>& reports);
nlohmann::json StudyJson(const StudyReport& report);

// "disaggregation gains 12 %", or that it does not pay and by how much it loses.
std::string Verdict(const StudyReport& report);

// Bars of speed-up, a group a case; a line over tolerances; bars of variants.
std::string SpeedUpPlot(const std::string& title, const std::vector<StudyReport>& reports);
std::string TolerancePlot(const std::vector<StudyReport>& reports);
std::string VariantPlot(const std::vector<StudyReport>& reports);

}  // namespace evenkeel
