// Runs the micro-batches of a step through the stages of a pipeline, as a schedule says
// (parallel/pipeline_schedule.h). With one stage it is a loop over them.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/pool_step.h"
#include "attention/server_pass.h"
#include "models/model.h"
#include "models/pooled_pass.h"
#include "parallel/mesh_comms.h"
#include "parallel/pipeline_schedule.h"
#include "runtime/data/packed_batch.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Of the tokens of a batch that a rank holds.
struct TokenLosses {
  std::vector<double> losses;  // 0 where there is no target
  std::vector<int32_t> targets;
  std::vector<int64_t> positions;
};

// With whom this rank pools its softmax attention, and how.
struct PoolSetup {
  AxisComm* axis = nullptr;  // null: this rank alone
  AttentionHeads heads;
  ServerPassMode mode;
  int64_t micro_batches = 1;  // of a training step
};

// Activations of a micro-batch that waits for its backward pass live in an arena of their own,
// which its slot of the schedule keeps.
class PipelineRun {
 public:
  // All references must outlive the object.
  PipelineRun(const OpContext& context, Model& model, const PipelineLinks& links,
              const MeshShape& shape, int pp_rank, MemoryTracker& tracker);

  // Forward and backward of all micro-batches, the last of which completes the gradients.
  // `batches`: one for each of the schedule's micro-batches, the same on all stages; some may be
  // empty. Adds the sum of the losses to loss_sum [1] on the last stage. Every rank of the pipeline
  // calls it.
  absl::Status Train(absl::Span<const PackedBatch> batches, double loss_scale, Recompute recompute,
                     TensorView loss_sum);

  // Train with disaggregated attention: runs the ticks of `step` (attention/pool_step.h), which was
  // planned for these batches. Every rank of the pool calls it.
  absl::Status TrainPooled(absl::Span<const PackedBatch> batches, double loss_scale,
                           Recompute recompute, TensorView loss_sum, const PoolSetup& pool,
                           PoolStep& step);

  // Losses of several micro-batches with disaggregated attention: runs the ticks of `step`
  // (PlanPoolForward), which was planned for these batches. Results are those of Losses. A pass
  // takes the memory that a micro-batch's forward pass takes in training, in an arena that is there
  // for the same chunk in a step of pool.micro_batches. Every rank of the pool calls it.
  absl::Status LossesPooled(absl::Span<const PackedBatch> batches, Recompute recompute,
                            const PoolSetup& pool, PoolStep& step,
                            std::vector<TokenLosses>* results);

  // Forward passes that keep nothing. On the last stage (*results)[i] are the losses of its tokens
  // of batches[i]; the others get nothing. Every rank of the pipeline calls it.
  absl::Status Losses(absl::Span<const PackedBatch> batches, std::vector<TokenLosses>* results);

  // Seconds of the last Train that this rank's host spent in actions, and of those waiting for
  // other stages. On a GPU the host only enqueues.
  double busy_seconds() const { return busy_seconds_; }
  double waiting_seconds() const { return waiting_seconds_; }

  // Of the last TrainPooled or LossesPooled, once: this rank's attention for the pool, forward and
  // backward.
  ServerTimes TakeServerTimes(PipelinePhase phase) {
    return server_clocks_[phase == PipelinePhase::kForward ? 0 : 1].Take();
  }

  // Of the arenas of all slots, beside the context's, and of the one for what travels to attention
  // servers.
  int64_t arena_bytes() const;
  int64_t pool_arena_bytes() const {
    return pool_arena_ == nullptr ? 0 : pool_arena_->peak_bytes();
  }
  int num_slots() const { return static_cast<int>(slots_.size()); }

 private:
  struct Slot {
    std::unique_ptr<Arena> arena;
    std::unique_ptr<OpContext> context;
    StagePass pass;
    Work receive;  // of what the next action needs
    Work send;     // of the forward pass's output
    bool has_begun = false;
  };

  // At least so many, with the timeline that this step is to be in, or none.
  absl::Status MakeSlots(int count);
  // A context like this one's whose arena is its own.
  absl::Status MakeArena(std::unique_ptr<Arena>* arena, std::unique_ptr<OpContext>* context);
  Slot& SlotOf(size_t action) { return *slots_[static_cast<size_t>(slot_of_[action])]; }
  void Begin(size_t action, absl::Span<const PackedBatch> batches);
  absl::Status LossesOf(const PackedBatch& batch, TokenLosses* result);
  void Wait(AxisComm* link, Work& work);
  // Makes what the ticks of a pooled pass need.
  absl::Status BeginPooled(const PoolSetup& pool, PoolAccess* access);
  // From what the stage before sends to what the next one receives (slot.send, under way).
  void RunForward(const PoolAccess& access, const PoolTick& tick, int chunk,
                  const PackedBatch& batch, bool backward, Recompute recompute, Slot& slot);
  // Of the tokens of a pass that the last stage has run.
  absl::Status ReadTokenLosses(const OpContext& context, const StagePass& pass,
                               TokenLosses* result);
  void SendGradient(const Slot& slot);
  bool IsFirstStage(int chunk) const { return pp_rank_ == 0 && chunk == 0; }
  bool IsLastStage(int chunk) const {
    return pp_rank_ + 1 == shape_.pp && chunk + 1 == model_.num_chunks();
  }

  const OpContext& context_;
  Model& model_;
  const PipelineLinks& links_;
  MeshShape shape_;
  int pp_rank_;
  MemoryTracker& tracker_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::unique_ptr<Arena> pool_arena_;  // what travels to attention servers
  std::unique_ptr<OpContext> pool_context_;
  std::vector<ServerClock> server_clocks_;  // none before the first pooled pass
  PipelineSchedule schedule_;
  std::vector<int> slot_of_;   // by action of this rank
  std::vector<int64_t> left_;  // backward passes still to come, by chunk
  struct Outgoing {
    Tensor buffer;
    Work work;
  } outgoing_[2];  // gradients on their way to the previous stage
  // In this step: with one there is one buffer.
  int64_t num_sent_ = 0;
  double busy_seconds_ = 0;
  double waiting_seconds_ = 0;
};

}  // namespace evenkeel
