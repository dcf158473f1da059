// The input of attention planning: which documents lie where, and who can compute their attention.
// Pure data; made alike on every rank from the lengths of a batch.
//
// Core attention has no weights and leaves nothing behind, so any rank of a pool can compute any
// part of it, as an attention server, for the ranks that hold the tokens (core attention
// disaggregation: DistCA, arXiv 2510.18121).
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

// Tokens [begin, begin + length) of a document, held by rank `owner` of the pool.
struct DocumentPiece {
  int owner = 0;
  int64_t begin = 0;
  int64_t length = 0;
  int64_t row = 0;  // of the first among the owner's rows

  bool operator==(const DocumentPiece&) const = default;
};

struct PooledDocument {
  int64_t length = 0;
  // First query to compute: those before it are here as keys alone (of an earlier nano-batch).
  int64_t q_begin = 0;
  // Queries after `length` will need its keys too (in a later nano-batch).
  bool continues = false;
  // Its pieces, pieces[first_piece, first_piece + num_pieces) of the pool: ascending, covering
  // [0, length), none empty.
  int32_t first_piece = 0;
  int32_t num_pieces = 0;
};

// Bytes of one token in one layer, as they travel (of a tensor-parallel rank's heads).
struct AttentionTokenBytes {
  int64_t q = 0;            // H Dq numbers
  int64_t kv = 0;           // G (Dq + D) numbers
  int64_t out = 0;          // H D numbers
  int64_t lse = 0;          // H statistics
  int64_t kv_gradient = 0;  // G (Dq + D) numbers of the wide dtype
};

struct AttentionPool {
  int num_ranks = 0;  // owners and servers are numbered [0, num_ranks)
  // Relative speed of each rank as a server; 0: it serves nothing (an owner alone, or one that
  // has died). At least one is positive. Some may own no token (a dedicated server).
  std::vector<double> speed;
  std::vector<PooledDocument> documents;
  std::vector<DocumentPiece> pieces;
  AttentionTokenBytes bytes;
};

}  // namespace evenkeel
