// The published experiments with core attention disaggregation (DistCA, arXiv 2510.18121, tables 3
// and 4 and figures 9 to 12), and larger ones, as cases to simulate.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/simulate_report.h"

namespace evenkeel {

enum class SimPreset {
  k3d,         // table 3: no pipeline
  k4d,         // table 4: with pipelines
  kAbsolute,   // step times of the authors' working results
  kAblations,  // figures 11 and 12
  kBeyond,     // 1,024 to 16,384 GPUs, samples of 1M tokens
};

struct PresetOptions {
  SimPreset preset = SimPreset::k3d;
  std::string configs = "configs";  // folder with models and clusters
  std::string cluster;              // file; empty: the preset's own
  std::vector<std::string> overrides;
  std::string pretrain, prolong;  // lists of lengths; one may be empty
  int64_t batches = 30;
  int64_t seed = 1;
  double tolerance = 0.05;
  std::vector<int64_t> virtual_stages = {1};  // to try in cases with pipelines
  int64_t most_gpus = 0;                      // leave out larger cases; 0: none
};

struct PresetCase {
  SimCase study;
  std::vector<SimSystem> systems;
  std::optional<PublishedRange> published;
  std::optional<double> published_seconds;
  bool ablations = false;
};

absl::StatusOr<std::vector<PresetCase>> CasesOf(const PresetOptions& options);

}  // namespace evenkeel
