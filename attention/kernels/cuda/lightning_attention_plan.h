// Cuts the documents of a packed batch into segments that the lightning attention kernels compute
// in parallel. Plain host code; a plan is made once per batch and serves every layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace evenkeel {

// Segments are whole chunks of 128 tokens: what a block multiplies at a time, or twice that.
constexpr int kLightningChunk = 128;

// Tokens [row_begin, row_begin + rows) of one document.
struct LightningSegment {
  int32_t row_begin;
  int32_t rows;
  int32_t document;
  int32_t unused;
};

// Segments [begin, end) of a document, in the order of its tokens; empty for an empty document.
struct LightningDocument {
  int32_t begin;
  int32_t end;
};

// A join is a segment that another one of its document follows: where a state passes between
// blocks.
struct LightningPlan {
  int64_t num_tokens = 0;
  int64_t num_segments = 0;
  int64_t num_documents = 0;
  int64_t num_joins = 0;
  std::vector<std::byte> bytes;  // segments, documents, joins
};

struct LightningPlanView {
  int64_t num_tokens = 0;
  int64_t num_segments = 0;
  int64_t num_documents = 0;
  int64_t num_joins = 0;
  const LightningSegment* segments = nullptr;
  const LightningDocument* documents = nullptr;
  const int32_t* joins = nullptr;  // segments that their successors follow
};

// Returns the segment length, a multiple of the chunk, with which one sequence of num_tokens gives
// every multiprocessor its share at once: every further cut costs a state in memory and the reading
// of the keys and values that it sums.
int LightningSegmentRows(int64_t num_tokens, int num_heads, int value_dim, int num_multiprocessors);

// cu_seqlens [num_documents + 1] = {0, ..., T}, T < 2^31.
LightningPlan PlanLightningAttention(const int64_t* cu_seqlens, int64_t num_documents,
                                     int segment_rows);

// `bytes` points to a copy of plan.bytes, aligned to 16.
LightningPlanView ViewOf(const LightningPlan& plan, const void* bytes);

}  // namespace evenkeel
