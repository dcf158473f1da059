// What all layers know about the tokens of a batch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "attention/context_plan.h"
#include "models/model_config.h"
#include "parallel/token_shards.h"
#include "runtime/data/packed_batch.h"
#include "runtime/ops/mirrored_array.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Rows of the outer pieces' chunks: large enough for matrix products at full speed; on the CPU
// small enough that the widest intermediate (2 F columns) stays in the shared cache; on several
// tensor-parallel GPUs half of what there is.
constexpr ChunkLimits TokenChunks(Device device, bool is_alone = true) {
  if (device == Device::kCpu) return {512, 512};
  return is_alone ? ChunkLimits{32768, 32768} : ChunkLimits{4096, 8192};
}

// Movable only: plans borrow the lists.
struct TokenLayout {
  TokenLayout() = default;
  TokenLayout(TokenLayout&&) = default;
  TokenLayout& operator=(TokenLayout&&) = default;

  // T tokens, and who holds their stream; with kDisaggregated cut into nano-batches, of which the
  // second is empty unless the split is kHalves.
  TokenShards shards;
  Positions positions;                   // [T], from 0 at each document
  std::unique_ptr<ContextPlan> context;  // with context parallelism; what follows is then not there
  SequencePlan sequences;                // documents, for lightning layers
  std::vector<AttentionTask> task_list;  // documents, for softmax layers
  std::vector<AttentionTask> block_list;  // blocks, for diag_attention layers
  TaskPlan tasks, block_tasks;            // the same, planned
  ConstTensorView rope_cos, rope_sin;     // [T, D / 2], of the wide dtype; always there
};

// The part of a micro-batch's tokens that `cp` leaves this rank, and with whom it shares their
// stream.
struct TokenAxes {
  AxisComm* tp = nullptr;  // null: alone
  AxisComm* cp = nullptr;
  ContextStrategy strategy;
};

// Builds it for a whole micro-batch. With context parallelism *shard receives this rank's tokens,
// else it stays empty. The rotary tables, and what a GPU reads, live in the context's arena; the
// batch and the shard are borrowed. `backward`: for training.
TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            const PackedBatch& batch, const TokenAxes& axes, bool backward,
                            PackedBatch* shard);
// The same on one rank, of sequences with the given positions: those of a decode step do not begin
// at 0.
TokenLayout MakeTokenLayout(const OpContext& context, const ModelConfig& config,
                            absl::Span<const int64_t> cu_seqlens,
                            absl::Span<const int64_t> positions, bool backward);

}  // namespace evenkeel
