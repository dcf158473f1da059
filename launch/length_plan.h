// The plan of disaggregated attention for a batch given by the lengths of its documents: what
// `evenkeel plan --lengths` tells.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "scheduler/attention_pool.h"
#include "scheduler/disaggregation_plan.h"
#include "scheduler/document_placement.h"

namespace evenkeel {

struct LengthPlanOptions {
  std::string lengths_file;  // JSON: a list of document lengths
  std::string model_file;    // a run config; of a tensor-parallel rank's heads
  std::vector<std::string> overrides;
  int servers = 0;
  int64_t tokens_per_server = 0;
  double tolerance = 0.05;
  DocumentPlacement placement = DocumentPlacement::kInOrder;
};

// Bytes to and from each rank in one layer.
struct RankBytes {
  std::vector<int64_t> send, recv;
};

struct LengthPlanReport {
  LengthPlanOptions options;
  int64_t num_heads = 0, num_kv_heads = 0, qk_size = 0, v_size = 0;  // of a tensor-parallel rank
  AttentionPool pool;
  // Loads are FLOPs of a layer's core attention, forward.
  DisaggregationPlan before, after;
  std::vector<double> own_load;  // of `after`: for queries that the server holds itself
  RankBytes forward;             // queries, keys and values, and the results back
  RankBytes both;                // and what the backward pass sends under the same plan
  int64_t num_links = 0;
  int64_t num_rounds = 0;
  double planning_ms = 0;  // median of several

  // Of a plan's loads.
  static double HeaviestToMean(const DisaggregationPlan& plan);
  static double MeanToLightest(const DisaggregationPlan& plan);
};

absl::StatusOr<LengthPlanReport> MakeLengthPlan(const LengthPlanOptions& options);

std::string LengthPlanText(const LengthPlanReport& report);
nlohmann::json LengthPlanJson(const LengthPlanReport& report);
// An SVG picture of the servers' loads before and after, and of what they send and receive.
std::string DrawLengthPlan(const LengthPlanReport& report);

}  // namespace evenkeel
