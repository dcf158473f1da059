// A cluster as a simulated training step sees it: what its GPUs achieve and how they are linked.
// Rates are those reached in practice, not those on the data sheet. Pure data; launch/ reads it
// from YAML.
#pragma once

#include <cstdint>
#include <string>

#include "scheduler/attention_cost.h"

namespace evenkeel {

// One direction of a GPU's link; both directions work at once.
struct LinkRate {
  double bytes_per_second = 1;
  double latency = 0;  // seconds from the start of a message to its first byte
};

// Measured rates of a rank, in place of those worked out from FLOPs: CPU ranks of this host, say.
// Seconds; of one layer where not said otherwise.
struct MeasuredRates {
  double pre_forward = 0;  // a token: norm, projection to Q, K, V, position
  double post_forward = 0;
  double pre_backward = 0;
  double post_backward = 0;      // recomputation included
  double embedding_forward = 0;  // a token, once, on the first stage
  double embedding_backward = 0;
  double head_forward = 0;  // a token, once, on the last stage
  double head_backward = 0;
  double attention_forward = 0;  // a (query, key) pair, all heads of the rank
  double attention_backward = 0;
  double parameter = 0;  // a parameter of the rank and step: norm of the gradients, optimizer
  double step = 0;       // a step: whatever belongs to no token and no parameter

  bool are_given() const { return pre_forward > 0; }
};

struct ClusterShape {
  std::string name;
  int gpus_per_node = 8;
  double memory_bytes = 80e9;  // of a GPU
  LinkRate nvlink;             // between GPUs of a node
  LinkRate network;            // of a GPU to other nodes
  double matmul_flops = 1;     // a second, of products with what stands around them
  // What of tensor-parallel communication no product hides: 1, all of it.
  double tp_exposed = 1;
  double copy_bytes_per_second = 1;  // of a copy on the GPU; every byte is read and written
  double piece_overhead = 0;         // seconds before a piece of a layer starts (launches)
  // Kernels of core attention, at 4 D FLOPs a (query, key) pair and head forward, 10 D backward.
  double attention_forward_flops = 1;
  double attention_backward_flops = 1;
  // Queries that a kernel works on at a time: fewer cost as much.
  int64_t attention_tile = 128;
  MeasuredRates measured;
};

}  // namespace evenkeel
