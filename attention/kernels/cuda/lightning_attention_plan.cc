#include "attention/kernels/cuda/lightning_attention_plan.h"

#include <algorithm>
#include <cstring>

namespace evenkeel {

int LightningSegmentRows(int64_t num_tokens, int num_heads, int value_dim,
                         int num_multiprocessors) {
  // Two blocks run on a multiprocessor at a time; four rounds of them even out their ends.
  const int64_t blocks = int64_t{num_multiprocessors} * 2 * 4;
  const int64_t columns = int64_t{num_heads} * ((value_dim + 63) / 64);
  const int64_t rows = num_tokens * columns / blocks;
  const int64_t chunks = (rows + kLightningChunk / 2) / kLightningChunk;
  return static_cast<int>(std::clamp<int64_t>(chunks, 4, 64)) * kLightningChunk;
}

LightningPlan PlanLightningAttention(const int64_t* cu_seqlens, int64_t num_documents,
                                     int segment_rows) {
  std::vector<LightningSegment> segments;
  std::vector<LightningDocument> documents;
  for (int64_t d = 0; d < num_documents; ++d) {
    const auto begin = static_cast<int32_t>(segments.size());
    for (int64_t row = cu_seqlens[d]; row < cu_seqlens[d + 1]; row += segment_rows) {
      segments.push_back(
          {static_cast<int32_t>(row),
           static_cast<int32_t>(std::min<int64_t>(segment_rows, cu_seqlens[d + 1] - row)),
           static_cast<int32_t>(d), 0});
    }
    documents.push_back({begin, static_cast<int32_t>(segments.size())});
  }
  LightningPlan plan;
  plan.num_segments = static_cast<int64_t>(segments.size());
  plan.num_documents = num_documents;
  const size_t segment_bytes = segments.size() * sizeof(LightningSegment);
  const size_t document_bytes = documents.size() * sizeof(LightningDocument);
  plan.bytes.resize(segment_bytes + document_bytes);
  if (segment_bytes > 0) std::memcpy(plan.bytes.data(), segments.data(), segment_bytes);
  if (document_bytes > 0) {
    std::memcpy(plan.bytes.data() + segment_bytes, documents.data(), document_bytes);
  }
  return plan;
}

LightningPlanView ViewOf(const LightningPlan& plan, const void* bytes) {
  LightningPlanView view;
  view.num_segments = plan.num_segments;
  view.num_documents = plan.num_documents;
  view.segments = static_cast<const LightningSegment*>(bytes);
  view.documents = reinterpret_cast<const LightningDocument*>(view.segments + plan.num_segments);
  return view;
}

}  // namespace evenkeel
