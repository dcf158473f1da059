#include "launch/cluster_config.h"

#include <filesystem>

#include "runtime/base/status_macros.h"
#include "runtime/config/config_fields.h"

namespace evenkeel {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12, kMicro = 1e-6;
constexpr double kLargest = 1e9;

// A field in other units than its storage: the description sees the value in `unit`s.
void Scaled(ConfigFields& fields, const char* key, double* value, double unit, const char* help,
            double min, double max) {
  double scaled = *value / unit;
  fields.Float(key, &scaled, help, min, max);
  *value = scaled * unit;
}

void DescribeLink(ConfigFields& fields, LinkRate& link) {
  Scaled(fields, "gb_s", &link.bytes_per_second, kGiga, "GB/s of a GPU, one direction", 1e-6,
         kLargest);
  Scaled(fields, "latency_us", &link.latency, kMicro, "of a message, microseconds", 0, kLargest);
}

void DescribeMeasured(ConfigFields& fields, MeasuredRates& rates) {
  const auto seconds = [&fields](const char* key, double* value, const char* help) {
    fields.Float(key, value, help, 0, kLargest);
  };
  seconds("pre_forward_s", &rates.pre_forward,
          "seconds a token and layer before core attention; 0 = worked out from FLOPs");
  seconds("post_forward_s", &rates.post_forward, "seconds a token and layer after it");
  seconds("pre_backward_s", &rates.pre_backward, "likewise, backward");
  seconds("post_backward_s", &rates.post_backward, "likewise, recomputation included");
  seconds("embedding_forward_s", &rates.embedding_forward, "seconds a token of the embedding");
  seconds("embedding_backward_s", &rates.embedding_backward, "likewise, backward");
  seconds("head_forward_s", &rates.head_forward, "seconds a token of head and loss");
  seconds("head_backward_s", &rates.head_backward, "likewise, backward");
  seconds("attention_forward_s", &rates.attention_forward,
          "seconds a (query, key) pair and layer, all heads of a rank");
  seconds("attention_backward_s", &rates.attention_backward, "likewise, backward");
  seconds("parameter_s", &rates.parameter,
          "seconds a parameter and step of gradient norm and optimizer, of runs as configured");
  seconds("step_s", &rates.step, "seconds of a step, whatever its tokens");
  if (!rates.are_given()) return;
  if (rates.post_forward <= 0) fields.Error("post_forward_s", "has to be given with pre_forward_s");
  if (rates.pre_backward <= 0) fields.Error("pre_backward_s", "has to be given with pre_forward_s");
  if (rates.post_backward <= 0) {
    fields.Error("post_backward_s", "has to be given with pre_forward_s");
  }
  if (rates.attention_forward <= 0) {
    fields.Error("attention_forward_s", "has to be given with pre_forward_s");
  }
  if (rates.attention_backward <= 0) {
    fields.Error("attention_backward_s", "has to be given with pre_forward_s");
  }
}

}  // namespace

void DescribeFields(ConfigFields& fields, ClusterConfig& config) {
  ClusterShape& cluster = config.shape;
  fields.String("name", &cluster.name, "as reports call it");
  fields.Int("gpus_per_node", &cluster.gpus_per_node, "GPUs (or ranks) of a node", 1, 1 << 20);
  Scaled(fields, "memory_gb", &cluster.memory_bytes, kGiga, "memory of a GPU, GB", 1e-3, kLargest);
  Scaled(fields, "piece_overhead_us", &cluster.piece_overhead, kMicro,
         "before a piece of a layer starts, microseconds", 0, kLargest);
  fields.Section("nvlink", "between GPUs of a node",
                 [&](ConfigFields& f) { DescribeLink(f, cluster.nvlink); });
  fields.Section("network", "of a GPU to other nodes",
                 [&](ConfigFields& f) { DescribeLink(f, cluster.network); });
  fields.Section("products", "all but core attention", [&](ConfigFields& f) {
    Scaled(f, "tflops", &cluster.matmul_flops, kTera,
           "TFLOP/s achieved by products with what stands around them", 1e-6, kLargest);
    f.Float("tp_exposed", &cluster.tp_exposed,
            "share of tensor-parallel communication that no product hides", 0, 1);
    Scaled(f, "copy_gb_s", &cluster.copy_bytes_per_second, kGiga,
           "GB/s of a copy on the GPU, each byte read and written", 1e-6, kLargest);
  });
  fields.Section("attention", "kernels of core attention", [&](ConfigFields& f) {
    Scaled(f, "forward_tflops", &cluster.attention_forward_flops, kTera,
           "TFLOP/s at 4 D FLOPs a pair of query and key", 1e-6, kLargest);
    Scaled(f, "backward_tflops", &cluster.attention_backward_flops, kTera,
           "TFLOP/s at 10 D FLOPs a pair", 1e-6, kLargest);
    f.Int("tile", &cluster.attention_tile, "queries worked on at a time: fewer cost as much", 1,
          1 << 20);
    f.String(
        "grid", &config.attention_grid,
        "file of `evenkeel bench attention`, beside this one, in place of the above; empty = none");
  });
  fields.Section("measured", "rates of a rank as measured, instead of those from FLOPs",
                 [&](ConfigFields& f) { DescribeMeasured(f, cluster.measured); });
}

absl::StatusOr<ClusterConfig> ReadClusterConfig(const std::string& file,
                                                const std::vector<std::string>& overrides) {
  ClusterConfig config;
  EK_RETURN_IF_ERROR(ReadConfig(
      file, overrides, [&config](ConfigFields& fields) { DescribeFields(fields, config); }));
  if (!config.attention_grid.empty()) {
    const std::filesystem::path path =
        std::filesystem::path(file).parent_path() / config.attention_grid;
    EK_ASSIGN_OR_RETURN(config.attention, ReadAttentionCostFile(path.string()));
  }
  return config;
}

}  // namespace evenkeel
