// A simulated experiment: one model, cluster and stream of documents, under several ways to spread
// a training step, each with the layout of ranks that suits it best.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "launch/cluster_config.h"
#include "launch/document_batches.h"
#include "models/model_config.h"
#include "runtime/base/thread_pool.h"
#include "scheduler/baseline_step.h"
#include "scheduler/disaggregated_step.h"

namespace evenkeel {

enum class SimSystem {
  kDisaggregated,
  kBalanced,        // packed by cost, documents over cp ranks: WLB-LLM's ideal
  kBalancedHidden,  // the same, its gathers hidden behind core attention as far as they go
  kInOrder,         // data parallelism of documents as they come
};

const char* SystemText(SimSystem system);

struct SimCase {
  std::string model_name;
  ModelConfig model;
  ClusterConfig cluster;
  std::string data_name;
  std::vector<int64_t> documents;  // prepared
  int64_t gpus = 0;
  int64_t tp = 8;
  int64_t context = 0;  // tokens of a sample, and of the longest document
  int64_t samples = 0;  // of a batch
  int64_t batches = 30;
  int64_t search_batches = 5;  // on which layouts are compared, spread over all
  std::vector<int64_t> pp = {1};
  std::vector<int64_t> virtual_stages = {1};  // of a pipeline rank: interleaved 1F1B with more
  std::vector<int64_t> pools = {1};           // into how many the ranks may be divided
  int64_t cp = 0;  // ranks that the tokens of a replica are laid over, disaggregated; 0: all
  std::optional<int64_t> micro_batches;
  int64_t micro_batch_choices = 6;  // of a pipeline: as many as stages, twice as many, ...
  RecomputePlan recompute = RecomputePlan::kMlp;
  int64_t element_bytes = 2;
  int64_t servers = 0;  // dedicated ones among the ranks
  bool owners_serve = true;
  bool balance = true;
  MessageMode mode = MessageMode::kPingPong;
  PieceOrder order = PieceOrder::kPingPong;
  DisaggregationOptions planning;

  // Ranks of one tensor-parallel coordinate.
  int64_t ranks() const { return gpus / tp; }
};

// Tokens of a balanced micro-batch over the mean, at most.
constexpr double kTokenSlack = 1.2;

struct SimLayout {
  SimSystem system = SimSystem::kDisaggregated;
  int pools = 1;
  int pp = 1;
  int virtual_stages = 1;
  int dp = 1;
  int cp = 1;
  int64_t micro_batches = 1;
  bool gathers_again = false;  // keys and values, backward, for want of memory to keep them
  double memory_bytes = 0;     // of the pipeline rank that needs most
  bool fits = true;

  bool is_disaggregated() const { return system == SimSystem::kDisaggregated; }
};

struct SimResult {
  SimLayout layout;
  double seconds = 0;                // mean over batches
  double idle = 0;                   // share of a rank's time in which it computes nothing
  double waits_message = 0;          // share with a message under way, compute busy or not
  double model_flops = 0;            // FLOP/s of a GPU by the honest formula (scheduler/flops.h)
  double tokens_per_second = 0;      // of a GPU
  PlanSummary plans;                 // worst of all batches
  std::vector<double> step_seconds;  // by batch
};

// With core attention as the cluster's grid has it, if it names one.
absl::StatusOr<StepCosts> PriceStep(const ModelConfig& model, const ClusterConfig& cluster,
                                    const CostOptions& options);

// All layouts that the case allows for a system. Those that fit the memory of a GPU first; where
// none does, the one that needs least, marked.
absl::StatusOr<std::vector<SimLayout>> LayoutsOf(const SimCase& study, SimSystem system);

// Of the case's batches every `stride`th.
absl::StatusOr<SimResult> RunLayout(const SimCase& study, const SimLayout& layout,
                                    ThreadPool* threads, int64_t stride = 1);

// The best of all layouts on a few of the batches, run on all of them.
absl::StatusOr<SimResult> RunBest(const SimCase& study, SimSystem system, ThreadPool* threads);

}  // namespace evenkeel
