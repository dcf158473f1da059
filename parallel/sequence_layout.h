// Which tokens of which document each context-parallel rank holds: the only authority on it. Masks,
// positions and what travels between ranks are derived from here. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/base/row_range.h"
#include "runtime/data/packed_batch.h"

namespace evenkeel {

// How a packed batch is split over R ranks.
//   kContiguous: the batch is one stream, cut into R parts, whatever the documents.
//   kZigzag: each document is cut into 2 R chunks of sizes that differ by at most 1, and rank r has
//     chunks r and 2 R - 1 - r: one with few keys before it and one with many, so that the causal
//     attention of every document is shared evenly (zigzag ring attention; the per-document
//     sharding of WLB-LLM). The tokens that are left where 2 R does not divide a length go to the
//     ranks that hold the fewest tokens so far.
//   kHalves: the batch is one stream, of which each half is cut into R parts: rank r has part r of
//     both. No token of the first half needs keys of the second, so the two can be computed one
//     after the other by all ranks (nano-batches, see FirstHalf).
// In any case the ranks' numbers of tokens differ by at most 1, also with many short documents.
// With kZigzag their (query, key) pairs of causal attention differ by a few times the length of the
// longest document, however many documents there are; with one whose length 2 R divides, not at
// all.
enum class SequenceSplit { kContiguous, kZigzag, kHalves };

// Tokens [begin, begin + length) of a document of the packed batch.
struct SequencePiece {
  int64_t document = 0;
  int64_t begin = 0;
  int64_t length = 0;

  bool operator==(const SequencePiece&) const = default;
};

class SequenceLayout {
 public:
  // cu_seqlens [D + 1], from 0, never falling: document d is [cu[d], cu[d + 1]) of the packed batch
  // and may be empty. Any lengths: ranks may be left without tokens.
  static SequenceLayout Make(SequenceSplit split, absl::Span<const int64_t> cu_seqlens,
                             int num_ranks);

  int num_ranks() const { return static_cast<int>(pieces_.size()); }
  // Of all ranks.
  int64_t num_tokens() const { return cu_seqlens_.back(); }
  // Of the whole batch.
  const std::vector<int64_t>& cu_seqlens() const { return cu_seqlens_; }
  // The rank's rows, in order: ascending by (document, begin), none empty, and those of a document
  // that touch are one.
  const std::vector<SequencePiece>& pieces(int rank) const;
  // Numbers of tokens [R].
  const std::vector<int64_t>& rows() const { return rows_; }

 private:
  SequenceLayout(absl::Span<const int64_t> cu_seqlens, int num_ranks);
  void SplitContiguous();
  void SplitZigzag();
  void SplitHalves();
  // Appends tokens [begin, end) of the packed batch.
  void AppendStream(int rank, int64_t begin, int64_t end);
  void Append(int rank, SequencePiece piece);

  std::vector<int64_t> cu_seqlens_;
  std::vector<std::vector<SequencePiece>> pieces_;  // by rank
  std::vector<int64_t> rows_;                       // by rank
};

// Tokens of the first half of a stream.
inline int64_t FirstHalf(int64_t num_tokens) {
  return (num_tokens + 1) / 2;
}

// Rows of the rank that lie in the first half of the stream. With kHalves, and on one rank alone,
// they come before the others.
int64_t RowsOfFirstHalf(const SequenceLayout& layout, int rank);

// Where the rows of all ranks, laid end to end in the order of ranks, lie in the packed batch.
// Ascending by `from`; together they cover every row once.
std::vector<RowRange> RankOrderToPacked(const SequenceLayout& layout);

// The inverse, ascending by `from`, too.
std::vector<RowRange> PackedToRankOrder(const SequenceLayout& layout);

// Returns what `rank` holds of `batch`, whose documents are those of the layout: cu_seqlens go over
// the rank's pieces. Positions stay those in the whole document, so they need not start at 0 in a
// piece, which PackedBatch::Validate would refuse.
PackedBatch TakeShard(const PackedBatch& batch, const SequenceLayout& layout, int rank);

// Counts the (query, key) pairs of causal attention whose query `rank` holds, keys anywhere: the
// measure of how evenly attention is shared.
int64_t CausalPairs(const SequenceLayout& layout, int rank);

}  // namespace evenkeel
