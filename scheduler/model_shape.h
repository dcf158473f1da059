// The sizes of a model, or of a rank's part of one, that planning needs: no weights, no names.
// Filled by models/ from a config. Of a part, heads, columns and rows are those of its slice.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace evenkeel {

struct LayerShape {
  bool is_linear = false;        // cost linear in length (lightning), or quadratic (softmax)
  int64_t block_size = 0;        // > 0: softmax or ReLU inside blocks of so many tokens
  int64_t num_heads = 0;         // H
  int64_t num_kv_heads = 0;      // G
  int64_t qk_size = 0;           // head size of q and k inside core attention
  int64_t v_size = 0;            // head size of v
  int64_t projection_width = 0;  // columns of the input projection
  int64_t out_width = 0;         // H times v_size
  int64_t intermediate_size = 0;
  int64_t copied_qk_width = 0;  // columns of q and k that core attention keeps apart, 0 if none
  int64_t num_matmul_parameters = 0;
  bool has_lse = false;
  bool widens_qk = false;        // gradients of q and k need memory of their own (LRPE)
  bool has_output_norm = false;  // what enters the output projection is not attention's output
  bool gated = false;            // its norm is computed again for the gate's gradient
  bool has_mlp_bias = false;     // of the feed-forward's products

  // Keys and values of a token, as they travel.
  int64_t kv_width() const { return num_kv_heads * (qk_size + v_size); }
  // Numbers of the state of linear attention.
  int64_t state_size() const { return num_heads * qk_size * v_size; }
  // Attention inside blocks without softmax.
  bool is_relu() const { return block_size > 0 && !has_lse; }
};

// Layers [begin, end) of the part, computed one after the other.
struct ChunkShape {
  int64_t begin = 0;
  int64_t end = 0;
};

// Elements [begin, end) of the flat buffer that several tensor-parallel ranks hold alike, each with
// a part of the gradient: all of them, or those that share a key/value head.
struct SharedRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool is_key_value = false;
};

struct ModelShape {
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;             // rows of the embedding and of the head
  int64_t num_parameters = 0;         // all that is stored, padding included
  int64_t num_matmul_parameters = 0;  // weights of matrix products, the head included
  int64_t rotary_size = 0;       // dimensions a token of the rotary tables, 0 if there are none
  bool keeps_embedding = false;  // kept apart for the gradient of a norm after it
  bool ties_embedding = false;   // the head is the embedding
  bool is_first = true;          // begins with the embedding
  bool is_last = true;           // ends with the head
  std::vector<LayerShape> layers;
  std::vector<ChunkShape> chunks;   // of the layers
  std::vector<int64_t> unit_begin;  // of the flat buffer: exact, embedding, layers, head, end
  std::vector<SharedRange> shared;  // ascending
  // A softmax layer of the whole model, if there is one, with this part's heads: what ranks without
  // such a layer serve too.
  std::optional<LayerShape> pooled;
};

}  // namespace evenkeel
