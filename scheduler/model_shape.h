// The sizes of a model that planning needs: no weights, no names. Filled by models/ from a config.
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

struct LayerShape {
  bool is_linear = false;        // cost linear in length (lightning), or quadratic (softmax)
  int64_t block_size = 0;        // > 0: softmax inside blocks of so many tokens
  int64_t num_heads = 0;         // H
  int64_t qk_size = 0;           // head size of q and k inside core attention
  int64_t v_size = 0;            // head size of v
  int64_t projection_width = 0;  // columns of the input projection
  int64_t out_width = 0;         // H times v_size
  int64_t intermediate_size = 0;
  int64_t copied_qk_width = 0;  // columns of q and k that core attention keeps apart, 0 if none
  bool has_lse = false;
  bool widens_qk = false;        // gradients of q and k need memory of their own (LRPE)
  bool has_output_norm = false;  // what enters the output projection is not attention's output
  bool gated = false;            // its norm is computed again for the gate's gradient
};

struct ModelShape {
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t num_parameters = 0;         // all that is stored
  int64_t num_matmul_parameters = 0;  // weights of matrix products, the head included
  int64_t rotary_size = 0;       // dimensions a token of the rotary tables, 0 if there are none
  bool keeps_embedding = false;  // kept apart for the gradient of a norm after it
  std::vector<LayerShape> layers;
};

}  // namespace evenkeel
