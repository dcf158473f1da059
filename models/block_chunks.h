// How the outer pieces of a block walk the tokens: chunk by chunk, in stages. Private to models/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>

#include "models/block_spec.h"
#include "parallel/token_shards.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Chunks that a stage may be behind the first one, plus one: buffers that pass values between
// stages have so many parts.
constexpr int64_t kChunksInFlight = 3;

inline TensorView Workspace(const OpContext& context, Shape shape) {
  return context.arena.Allocate(context.dtype, shape, MemoryPurpose::kWorkspace);
}

inline TensorView Activations(const OpContext& context, Shape shape) {
  return context.arena.Allocate(context.dtype, shape, MemoryPurpose::kActivations);
}

// A stage of the walk, `lag` chunks behind. Between the stages of one chunk rows travel between
// ranks, and meanwhile the other stages work on other chunks.
struct ChunkStage {
  int64_t lag;
  std::function<void(int64_t chunk)> run;
};

// Runs all stages of all chunks: in each turn the stages in the order given. One rank alone waits
// for nobody, so its chunks go through all stages while they are in cache; the stages are then
// ordered by their lag.
inline void RunStages(const TokenShards& shards, std::initializer_list<ChunkStage> stages) {
  const int64_t n = shards.num_chunks();
  int64_t most = 0;
  for (const ChunkStage& stage : stages) most = std::max(most, stage.lag);
  if (shards.is_alone()) {
    for (int64_t chunk = 0; chunk < n; ++chunk) {
      for (int64_t lag = 0; lag <= most; ++lag) {
        for (const ChunkStage& stage : stages) {
          if (stage.lag == lag) stage.run(chunk);
        }
      }
    }
    return;
  }
  for (int64_t turn = 0; turn < n + most; ++turn) {
    for (const ChunkStage& stage : stages) {
      const int64_t chunk = turn - stage.lag;
      if (chunk >= 0 && chunk < n) stage.run(chunk);
    }
  }
}

// This rank's rows of a tensor [tokens held, columns] that is kept, or, if `kept` is empty, buffers
// for the chunks in flight.
class ChunkedRows {
 public:
  ChunkedRows(const OpContext& context, const TokenShards& shards, TensorView kept, int64_t columns)
      : shards_(shards), kept_(kept), parts_(shards.is_alone() ? 1 : kChunksInFlight) {
    if (kept.empty()) buffer_ = Workspace(context, {parts_ * shards.max_share(), columns});
  }
  TensorView operator()(int64_t chunk) const {
    const RowSpan mine = shards_.Mine(chunk);
    if (!kept_.empty()) return kept_.Rows(mine.begin, mine.end);
    const int64_t begin = chunk % parts_ * shards_.max_share();
    return buffer_.Rows(begin, begin + mine.size());
  }

 private:
  const TokenShards& shards_;
  TensorView kept_, buffer_;
  int64_t parts_;
};

template <typename View>
View RowsOf(const View& view, RowSpan span) {
  return view.empty() ? view : view.Rows(span.begin, span.end);
}

// The columns of a projection, or of its gradient. q [T, H, D], k and v [T, G, D], gate [T, H D];
// qk [T, H + G, D] is q and k as one.
template <typename View>
struct ProjectionParts {
  View q, k, qk, v, gate;
};

template <typename View>
ProjectionParts<View> PartsOf(const BlockSpec& spec, const View& proj) {
  const int64_t q_end = spec.q_width(), k_end = q_end + spec.kv_width();
  const int64_t v_end = k_end + spec.kv_width();
  ProjectionParts<View> parts;
  parts.q = proj.Columns(0, q_end).SplitHeads(spec.num_heads);
  parts.k = proj.Columns(q_end, k_end).SplitHeads(spec.num_kv_heads);
  parts.qk = proj.Columns(0, k_end).SplitHeads(spec.num_heads + spec.num_kv_heads);
  parts.v = proj.Columns(k_end, v_end).SplitHeads(spec.num_kv_heads);
  if (spec.gated) parts.gate = proj.Columns(v_end, spec.projection_width());
  return parts;
}

}  // namespace evenkeel
