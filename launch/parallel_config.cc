#include "launch/parallel_config.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/config/config_fields.h"

namespace evenkeel {
namespace {

constexpr int kMostRanks = 1 << 20;

// What only disaggregated attention reads is not to be set in vain. A value that says what holds
// anyway is fine: a run's resolved.yaml has every key. `unset` holds the defaults.
void CheckPoolKeys(ConfigFields& fields, const ParallelConfig& config,
                   const ParallelConfig& unset) {
  if (fields.HasError("attention") || fields.HasError("attention_servers")) return;
  const bool sets_least = config.attention_servers_min != unset.attention_servers_min;
  if (config.attention == SoftmaxExchange::kDisaggregated) {
    if (sets_least && config.attention_servers == 0) {
      fields.Error("attention_servers_min",
                   "has no effect without dedicated servers: remove it, or set "
                   "parallel.attention_servers to a number of them");
    }
    return;
  }
  const std::pair<const char*, bool> keys[] = {
      {"attention_servers", config.attention_servers != unset.attention_servers},
      {"attention_servers_min", sets_least},
      {"attention_speeds", config.attention_learns_speeds != unset.attention_learns_speeds},
      {"attention_cost", config.attention_cost != unset.attention_cost},
      {"attention_tolerance", config.attention_tolerance != unset.attention_tolerance},
      {"attention_shard", config.attention_shard != unset.attention_shard},
      {"attention_messages", config.attention_signals != unset.attention_signals},
      {"ping_pong", config.ping_pong != unset.ping_pong},
  };
  for (const auto& [key, is_set] : keys) {
    if (!is_set) continue;
    fields.Error(key,
                 "has no effect, as parallel.attention is not disaggregated: remove it, or set "
                 "parallel.attention: disaggregated");
  }
}

}  // namespace

void DescribeFields(ConfigFields& fields, ParallelConfig& config) {
  const ParallelConfig unset = config;
  fields.Int("pp", &config.mesh.pp, "pipeline stages", 1, kMostRanks);
  fields.Int("dp", &config.mesh.dp, "data-parallel replicas; 0 = what is left of the ranks", 0,
             kMostRanks);
  fields.Int("cp", &config.mesh.cp, "ranks that share the tokens of a sample", 1, kMostRanks);
  fields.Int("tp", &config.mesh.tp, "ranks that share the heads and columns of a layer", 1,
             kMostRanks);
  fields.Int("virtual_stages", &config.virtual_stages,
             "pieces of the model a pipeline rank holds, dealt out in turn (interleaved 1F1B)", 1,
             1024);
  std::vector<std::string> layers;
  for (const int64_t n : config.layers_per_stage) layers.push_back(absl::StrCat(n));
  fields.StringList("layers_per_stage", &layers,
                    "layers of each of pp * virtual_stages stages; empty = evenly");
  config.layers_per_stage.clear();
  for (const std::string& text : layers) {
    int64_t n = 0;
    if (!absl::SimpleAtoi(text, &n) || n < 1) {
      fields.Error("layers_per_stage", absl::StrCat("'", text, "' is not a number of layers"));
      break;
    }
    config.layers_per_stage.push_back(n);
  }
  fields.Enum("zero", &config.zero,
              "what data-parallel ranks share: nothing, optimizer state, gradients too, parameters "
              "too (ZeRO 0 to 3)",
              {{"0", ShardingStage::kNone},
               {"1", ShardingStage::kOptimizer},
               {"2", ShardingStage::kGradients},
               {"3", ShardingStage::kParameters}});
  fields.Enum("attention", &config.attention,
              "how softmax attention crosses cp ranks; disaggregated: over dp and pp ranks too",
              {{"gather", SoftmaxExchange::kGather},
               {"ring", SoftmaxExchange::kRing},
               {"ulysses", SoftmaxExchange::kUlysses},
               {"disaggregated", SoftmaxExchange::kDisaggregated}});
  std::string servers =
      config.attention_servers == 0 ? "in_place" : absl::StrCat(config.attention_servers);
  fields.String("attention_servers", &servers,
                "disaggregated: in_place, every rank serves, or a number of ranks more, for each "
                "tensor-parallel place, that hold no weights and serve alone");
  int count = 0;
  if (servers != "in_place" &&
      (!absl::SimpleAtoi(servers, &count) || count < 1 || count > kMostRanks)) {
    fields.Error("attention_servers",
                 absl::StrCat("'", servers, "' is neither in_place nor a number of ranks"));
  } else {
    config.attention_servers = count;
  }
  fields.Int("attention_servers_min", &config.attention_servers_min,
             "dedicated servers: with fewer left, after others were lost, training saves and stops",
             1, kMostRanks);
  fields.Enum("attention_speeds", &config.attention_learns_speeds,
              "disaggregated: servers are taken to be equally fast, or as fast as was measured in "
              "the steps before, where runs are then no longer the same to the bit",
              {{"equal", false}, {"measured", true}});
  fields.String(
      "attention_cost", &config.attention_cost,
      "disaggregated: what `evenkeel bench attention --json` measured, to balance times by; "
      "empty: (query, key) pairs are balanced");
  fields.Float("attention_tolerance", &config.attention_tolerance,
               "disaggregated: how far the load of an attention server may be from the mean", 0.001,
               100);
  fields.Int("attention_shard", &config.attention_shard,
             "disaggregated: documents are cut for servers at multiples of so many tokens", 1,
             1 << 20);
  fields.Enum("attention_messages", &config.attention_signals,
              "disaggregated: all that is needed, or, to measure what communication costs, one "
              "number a message, which makes every result wrong",
              {{"whole", false}, {"signal", true}});
  fields.Enum("ping_pong", &config.ping_pong,
              "disaggregated: messages of half a micro-batch travel while the other half is "
              "computed; auto: on a GPU; serial: two halves, but nothing travels meanwhile",
              {{"auto", PingPong::kAuto},
               {"on", PingPong::kOn},
               {"off", PingPong::kOff},
               {"serial", PingPong::kSerial}});
  fields.Enum("linear_attention", &config.linear_attention,
              "how the state of linear attention crosses cp ranks",
              {{"gather", StateExchange::kGather}, {"scan", StateExchange::kScan}});
  fields.Enum("tp_transport", &config.tp_transport,
              "on GPUs: how rows travel between tp ranks, whose products go on meanwhile; by the "
              "copy engines of the GPUs of a host they take no multiprocessor",
              {{"nccl", RowTransport::kNccl}, {"copy_engines", RowTransport::kCopyEngines}});
  fields.Enum("split", &config.split,
              "how samples are cut over cp ranks; auto: zigzag where a layer has softmax attention",
              {{"auto", SplitPolicy::kAuto},
               {"contiguous", SplitPolicy::kContiguous},
               {"zigzag", SplitPolicy::kZigzag}});
  CheckPoolKeys(fields, config, unset);
}

int64_t FewestRanks(const ParallelConfig& config) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  const int64_t degrees[] = {config.mesh.tp, config.mesh.cp, config.mesh.pp,
                             std::max(1, config.mesh.dp)};
  int64_t ranks = 1;
  for (const int64_t degree : degrees) ranks = std::min(kMost, ranks * degree);
  return std::min(kMost, ranks + int64_t{1} * config.attention_servers * config.mesh.tp);
}

}  // namespace evenkeel
