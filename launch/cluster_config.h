// The description of a cluster, from a YAML file of configs/clusters/.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/attention_cost_file.h"
#include "scheduler/cluster.h"

namespace evenkeel {

class ConfigFields;

struct ClusterConfig {
  ClusterShape shape;
  std::string attention_grid;  // beside the config: what `evenkeel bench attention` measured; or ""
  std::optional<AttentionCostFile> attention;  // its contents
};

// Reads or writes all sections.
void DescribeFields(ConfigFields& fields, ClusterConfig& config);

// Reads `file` with overrides ("attention.forward_tflops=500"), and the grid it names. All errors
// of the config at once.
absl::StatusOr<ClusterConfig> ReadClusterConfig(const std::string& file,
                                                const std::vector<std::string>& overrides);

}  // namespace evenkeel
