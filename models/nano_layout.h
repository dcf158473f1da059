// The two halves of a micro-batch's rows, as the pieces of a block see them. Private to models/.
#pragma once

#include "models/block.h"
#include "models/block_chunks.h"
#include "models/token_layout.h"

namespace evenkeel {

// Rows of T tokens and of the stream, which both begin with the first nano-batch's.
class NanoLayout {
 public:
  // `layout`, cut in two (TokenShards), must outlive the object.
  explicit NanoLayout(const TokenLayout& layout) {
    for (int n = 0; n < 2; ++n) {
      TokenLayout& part = parts_[n];
      part.shards = layout.shards.Part(n);
      const int64_t first = n == 0 ? 0 : tokens_[0].end, held = n == 0 ? 0 : stream_[0].end;
      tokens_[n] = {first, first + part.shards.num_tokens()};
      stream_[n] = {held, held + part.shards.num_mine()};
      part.positions = layout.positions.Slice(tokens_[n].begin, tokens_[n].end);
      part.rope_cos = RowsOf(layout.rope_cos, tokens_[n]);
      part.rope_sin = RowsOf(layout.rope_sin, tokens_[n]);
    }
  }

  const TokenLayout& part(int n) const { return parts_[n]; }
  template <typename View>
  View Tokens(int n, const View& view) const {
    return RowsOf(view, tokens_[n]);
  }
  template <typename View>
  View Stream(int n, const View& view) const {
    return RowsOf(view, stream_[n]);
  }
  BlockActivations Of(int n, const BlockActivations& all) const {
    BlockActivations part;
    part.x = Stream(n, all.x);
    part.proj = Tokens(n, all.proj);
    part.core.out = Tokens(n, all.core.out);
    part.core.lse = Tokens(n, all.core.lse);
    part.core.squares = Tokens(n, all.core.squares);
    part.x_mid = Stream(n, all.x_mid);
    part.pair = Tokens(n, all.pair);
    part.normed = Stream(n, all.normed);
    part.normed_mid = Stream(n, all.normed_mid);
    return part;
  }

 private:
  TokenLayout parts_[2];
  RowSpan tokens_[2];
  RowSpan stream_[2];
};

}  // namespace evenkeel
