// Sequence parallelism inside a tensor-parallel group (Korthikanti et al., MLSys 2023): between the
// matrix products, where ranks would repeat each other's work token by token, each holds a share of
// the tokens. Shares are cut out of chunks, not out of the whole: chunk by chunk, rows are gathered
// before a product and its partial sums scattered after it, while the product of another chunk
// runs. Where tokens are computed in two parts (nano-batches), a chunk ends where the first part
// does: each part is then a TokenShards of its own, and a rank's shares of the two lie end to end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/axis_comm.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

struct RowSpan {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// How many rows a chunk has. Where rows travel between ranks there should be two chunks, so that
// those of one travel while the other is multiplied: fewer rows make products slower, and all at
// once leave nothing to hide behind.
struct ChunkLimits {
  int64_t least = 512;
  int64_t most = 512;

  // Of `tokens` that are computed as one part.
  int64_t RowsFor(int64_t tokens) const { return std::clamp((tokens + 1) / 2, least, most); }
};

class TokenShards {
 public:
  // `tokens` in chunks of `chunk_rows`, shared by the ranks of `axis` (null: one rank, whose share
  // is everything). A chunk ends after the first `cut` tokens (0: one part).
  TokenShards(int64_t tokens, int64_t chunk_rows, AxisComm* axis, int64_t cut = 0)
      : tokens_(tokens), chunk_rows_(chunk_rows), axis_(axis), cut_(cut) {}
  TokenShards() : TokenShards(0, 1, nullptr) {}

  AxisComm* axis() const { return axis_; }
  bool is_alone() const { return axis_ == nullptr; }
  int64_t num_tokens() const { return tokens_; }
  int64_t num_chunks() const { return chunks_before_cut() + ChunksOf(tokens_ - cut_); }
  // Rows of the largest chunk.
  int64_t max_rows() const { return std::min(chunk_rows_, std::max(cut_, tokens_ - cut_)); }
  // Rows of the largest share of a chunk.
  int64_t max_share() const { return (max_rows() + DegreeOf(axis_) - 1) / DegreeOf(axis_); }

  // The chunk's rows among all tokens, and this rank's share of them among those it holds.
  RowSpan Whole(int64_t chunk) const {
    const int64_t before = chunks_before_cut();
    const int64_t begin =
        chunk < before ? chunk * chunk_rows_ : cut_ + (chunk - before) * chunk_rows_;
    return {begin, std::min(chunk < before ? cut_ : tokens_, begin + chunk_rows_)};
  }
  RowSpan Mine(int64_t chunk) const;
  int64_t num_mine() const;
  // Rows of each rank's share of the chunk.
  std::vector<int64_t> Shares(int64_t chunk) const;
  // This rank's share of the chunk among all tokens.
  RowSpan PlaceOfMine(int64_t chunk) const;
  // The part before the cut, and the one after it.
  TokenShards Part(int part) const {
    return {part == 0 ? cut_ : tokens_ - cut_, chunk_rows_, axis_};
  }

 private:
  int64_t ChunksOf(int64_t rows) const { return (rows + chunk_rows_ - 1) / chunk_rows_; }
  int64_t chunks_before_cut() const { return ChunksOf(cut_); }

  int64_t tokens_;
  int64_t chunk_rows_;
  AxisComm* axis_;
  int64_t cut_;
};

// Gathers chunks of [tokens held, width] to [chunk, width], up to two at a time. One rank alone
// passes its rows on.
class ChunkGather {
 public:
  // Buffers live in the context's arena.
  ChunkGather(const OpContext& context, const TokenShards& shards, int64_t width,
              const char* label);

  // `mine` [share of the chunk, width], dense; stays untouched until Finish.
  void Start(int64_t chunk, ConstTensorView mine);
  // Returns the chunk's rows [c, width], valid until the chunk after the next is started.
  ConstTensorView Finish(int64_t chunk);

 private:
  const TokenShards& shards_;
  const char* label_;
  struct InFlight {
    TensorView buffer;
    ConstTensorView rows;
    Work work;
  } flights_[2];
};

// The way back: sums partial rows [chunk, width] over the ranks and leaves each its share.
class ChunkScatter {
 public:
  ChunkScatter(const OpContext& context, const TokenShards& shards, int64_t width,
               const char* label);

  // Where the partial rows of the chunk are to be written. For several ranks only.
  TensorView Partial(int64_t chunk) const;
  // `mine` [share of the chunk, width], dense, receives the sum by Finish.
  void Start(int64_t chunk, TensorView mine);
  void Finish(int64_t chunk);

 private:
  const TokenShards& shards_;
  const char* label_;
  struct InFlight {
    TensorView buffer;
    Work work;
  } flights_[2];
};

}  // namespace evenkeel
