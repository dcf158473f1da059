// What the pieces of a training step cost on a cluster: seconds a token, bytes a token, seconds of
// attention. FLOPs and bytes come from the model's shape, rates from the cluster. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/attention_cost.h"
#include "scheduler/attention_pool.h"
#include "scheduler/cluster.h"
#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"

namespace evenkeel {

// Seconds a token.
struct TokenSeconds {
  double forward = 0;
  double backward = 0;

  TokenSeconds& operator+=(const TokenSeconds& other) {
    forward += other.forward;
    backward += other.backward;
    return *this;
  }
};

// A layer with softmax attention: what comes before core attention, and what comes after it.
struct SoftmaxLayerCost {
  TokenSeconds pre;
  TokenSeconds post;
  TokenSeconds others;  // layers of other attention between the softmax layer before and this one
};

struct StageCost {
  std::vector<SoftmaxLayerCost> layers;
  TokenSeconds tail;       // other layers after the last of them, or all if there is none
  TokenSeconds embedding;  // of the first stage: before its layers, and after them backward
  TokenSeconds head;       // of the last stage: both before its layers backward
};

// Core attention of one layer. Planners balance `cost`; a server takes what Seconds says.
struct AttentionTime {
  AttentionCost cost = AttentionCost::PerPair(0);
  int64_t tile = 1;  // queries are worked on by so many: a tile that is not full costs as much

  double Seconds(int64_t q_len, int64_t kv_len) const;
};

struct StepCosts {
  std::vector<StageCost> stages;    // of the model, in order; a pipeline rank may have several
  AttentionTokenBytes token_bytes;  // of one layer
  double stage_bytes = 0;           // a token, from stage to stage
  AttentionTime forward, backward;
  bool forward_again = false;        // in the backward pass, where attention is not pooled
  double piece_overhead = 0;         // seconds
  double copy_seconds_per_byte = 0;  // of packing and unpacking: read and written
  double step_seconds = 0;           // of a step, whatever its tokens
  double parameter_seconds = 0;      // a parameter of the rank, of a step; not in simulated steps
  double flops_per_token = 0;        // of products in the whole model, forward and backward
  double flops_per_pair = 0;         // of a (query, key) pair in all layers
};

struct CostOptions {
  // First layer of each stage of the model, and the number of layers (parallel/layer_split.h);
  // empty: one stage.
  std::vector<int64_t> stage_begin;
  int tp = 1;
  RecomputePlan recompute = RecomputePlan::kMlp;
  int64_t element_bytes = 2;  // of activations
  int64_t wide_bytes = 4;
};

// `shape`: the whole model's; what a tensor-parallel rank has of it is worked out here. Layers of
// softmax attention are alike in heads and head sizes.
absl::StatusOr<StepCosts> PriceStep(const ModelShape& shape, const ClusterShape& cluster,
                                    const CostOptions& options);

// The link between two ranks of the pool of one tensor-parallel coordinate: ranks of a node are
// neighbours in it.
const LinkRate& LinkBetween(const ClusterShape& cluster, int tp, int a, int b);

// Seconds of an all-gather or reduce-scatter over `ranks` such neighbours in which every rank ends
// up with, or begins with, `bytes`.
double GatherSeconds(const ClusterShape& cluster, int tp, int ranks, double bytes);

}  // namespace evenkeel
