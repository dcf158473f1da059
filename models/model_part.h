// Which part of a model a rank holds: some layers (pipeline parallelism), and of each a slice
// (tensor parallelism).
#pragma once

#include <cstdint>
#include <vector>

#include "models/model_config.h"

namespace evenkeel {

// Layers [begin, end) of the model, computed one after the other.
struct LayerRange {
  int64_t begin = 0;
  int64_t end = 0;
};

struct ModelPart {
  // The rank's model chunks, ascending: one, or several with interleaved pipeline schedules.
  std::vector<LayerRange> chunks;
  bool is_first = true;  // holds the embedding, which its first chunk begins with
  bool is_last = true;   // holds final norm and head, which its last chunk ends with
  int tp = 1;            // tensor-parallel degree, and this rank's place in it
  int tp_rank = 0;
  // Units of the flat buffer (parameters.h) are as long as a multiple of this.
  int64_t unit_multiple = 1;

  bool holds_embedding(const ModelConfig& config) const {
    return is_first || (is_last && config.tie_embeddings);
  }
};

// The whole model on one rank.
ModelPart WholeModel(const ModelConfig& config);

// Part `rank` of [0, n) that are to be nearly equal, in order.
struct Slice {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};
inline Slice SliceOf(int64_t n, int parts, int rank) {
  return {n * rank / parts, n * (rank + 1) / parts};
}

// Query and key/value heads of a tensor-parallel rank. Heads divide evenly; where there are fewer
// key/value heads than ranks, neighbouring ranks hold the same one.
Slice QueryHeads(int64_t num_heads, const ModelPart& part);
Slice KeyValueHeads(int64_t num_kv_heads, const ModelPart& part);

}  // namespace evenkeel
