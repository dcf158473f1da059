// What core attention costs on a device, as `evenkeel bench attention --json` measured it: a JSON
// file that planning and simulation read.
//
//   {"format": "evenkeel attention cost 1", "program": ..., "date": "2026-11-27T05:30:00Z",
//    "device": "NVIDIA H100 80GB HBM3", "threads": 0, "dtype": "bfloat16", "heads": 32,
//    "kv_heads": 8, "head_size": 128, "runs": 5, "matrix_product_flops": 7.8e14,
//    "points": [{"q_len": 128, "kv_len": 4096, "tasks": 512, "forward_s_per_pair": 4.1e-11,
//                "backward_s_per_pair": 1.2e-10, "both_s_per_pair": 1.6e-10}, ...]}
//
// A pair is a query and a key it sees, counted once for all heads. The points are all (q_len,
// kv_len) with q_len <= kv_len of two lists of lengths; every kv_len is a q_len too, so that whole
// documents are among them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "scheduler/attention_cost.h"

namespace evenkeel {

// Seconds of a pair, median over the runs, in a launch of `tasks` tasks alike.
struct AttentionCostPoint {
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t tasks = 0;
  double forward_s_per_pair = 0;
  double backward_s_per_pair = 0;
  double both_s_per_pair = 0;  // the one right after the other
};

struct AttentionCostFile {
  std::string program;  // VersionText()
  std::string date;     // UTC
  std::string device;
  int64_t threads = 0;  // of the CPU; 0 on a GPU
  std::string dtype;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_size = 0;
  int64_t runs = 0;
  double matrix_product_flops = 0;  // a second, of a large product, for comparison
  std::vector<AttentionCostPoint> points;
};

nlohmann::json ToJson(const AttentionCostFile& file);

// Fails with an error of usage that names the file, the place in it, and what to do.
absl::StatusOr<AttentionCostFile> ReadAttentionCostFile(const std::string& path);

struct AttentionCosts {
  AttentionCost forward;
  AttentionCost backward;
};

// Costs for `heads` query heads of `head_size` on a server like the device measured: a pair's time
// is taken to grow with heads times head size.
absl::StatusOr<AttentionCosts> CostsOf(const AttentionCostFile& file, int64_t heads,
                                       int64_t head_size);

}  // namespace evenkeel
