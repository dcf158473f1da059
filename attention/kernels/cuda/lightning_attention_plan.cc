#include "attention/kernels/cuda/lightning_attention_plan.h"

#include <algorithm>

namespace evenkeel {

int LightningSegmentRows(int64_t num_tokens, int num_heads, int value_dim,
                         int num_multiprocessors) {
  // Blocks of 64 columns run two on a multiprocessor, blocks of a whole head of 128 one.
  const int64_t columns = int64_t{num_heads} * ((value_dim + 63) / 64);
  const int64_t segments = std::max<int64_t>(int64_t{num_multiprocessors} * 2 / columns, 1);
  const int64_t rows = (num_tokens + segments - 1) / segments;
  const int64_t chunks = (rows + kLightningChunk - 1) / kLightningChunk;
  return static_cast<int>(std::max<int64_t>(chunks, 2)) * kLightningChunk;
}

LightningPlan PlanLightningAttention(const int64_t* cu_seqlens, int64_t num_documents,
                                     int segment_rows) {
  std::vector<LightningSegment> segments;
  std::vector<LightningDocument> documents;
  std::vector<int32_t> joins;
  for (int64_t d = 0; d < num_documents; ++d) {
    const auto begin = static_cast<int32_t>(segments.size());
    for (int64_t row = cu_seqlens[d]; row < cu_seqlens[d + 1]; row += segment_rows) {
      if (row > cu_seqlens[d]) joins.push_back(static_cast<int32_t>(segments.size()) - 1);
      segments.push_back(
          {static_cast<int32_t>(row),
           static_cast<int32_t>(std::min<int64_t>(segment_rows, cu_seqlens[d + 1] - row)),
           static_cast<int32_t>(d), 0});
    }
    documents.push_back({begin, static_cast<int32_t>(segments.size())});
  }
  LightningPlan plan;
  plan.num_tokens = cu_seqlens[num_documents];
  plan.num_segments = static_cast<int64_t>(segments.size());
  plan.num_documents = num_documents;
  plan.num_joins = static_cast<int64_t>(joins.size());
  const auto append = [&plan](const auto& list) {
    const auto* begin = reinterpret_cast<const std::byte*>(list.data());
    plan.bytes.insert(plan.bytes.end(), begin, begin + list.size() * sizeof(list[0]));
  };
  append(segments);
  append(documents);
  append(joins);
  return plan;
}

LightningPlanView ViewOf(const LightningPlan& plan, const void* bytes) {
  LightningPlanView view;
  view.num_tokens = plan.num_tokens;
  view.num_segments = plan.num_segments;
  view.num_documents = plan.num_documents;
  view.num_joins = plan.num_joins;
  view.segments = static_cast<const LightningSegment*>(bytes);
  view.documents = reinterpret_cast<const LightningDocument*>(view.segments + plan.num_segments);
  view.joins = reinterpret_cast<const int32_t*>(view.documents + plan.num_documents);
  return view;
}

}  // namespace evenkeel
