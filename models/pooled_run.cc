// PipelineRun::TrainPooled: ticks in which all stages run the same phase and share their attention.
#include <algorithm>
#include <chrono>

#include "models/pipeline_run.h"
#include "models/pooled_pass.h"
#include "parallel/phase_schedule.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

absl::Status PipelineRun::TrainPooled(absl::Span<const PackedBatch> batches, double loss_scale,
                                      Recompute recompute, TensorView loss_sum,
                                      const PoolSetup& pool, PoolStep& step) {
  busy_seconds_ = waiting_seconds_ = 0;
  const double start = Now();
  EK_CHECK(model_.num_chunks() == 1) << "disaggregated attention with virtual stages";
  if (pool_arena_ == nullptr) EK_RETURN_IF_ERROR(MakeArena(&pool_arena_, &pool_context_));
  pool_context_->trace = context_.trace;
  if (server_clocks_.empty()) server_clocks_ = MakeServerClocks(context_);
  for (ServerClock& clock : server_clocks_) (void)clock.Take();
  const auto count = static_cast<int64_t>(batches.size());
  const PipelineSchedule schedule = SamePhaseSchedule(shape_.pp, count);
  const std::vector<int> slots = ActivationSlots(schedule, pp_rank_);
  EK_RETURN_IF_ERROR(MakeSlots(static_cast<int>(PeakInFlight(schedule, pp_rank_))));
  const PoolAccess access{pool_context_.get(), pool.axis, pool.heads, pool.mode,
                          server_clocks_.data()};
  const bool is_first = IsFirstStage(0), is_last = IsLastStage(0);
  size_t action = 0;
  int64_t left = count;  // backward passes
  for (PoolTick& tick : step.ticks) {
    const ArenaScope scope(*pool_arena_);
    Prepare(*pool_context_, pool.heads.of_tasks(), tick);
    const int64_t micro_batch = MicroBatchAt(tick.tick, shape_.pp, count, pp_rank_);
    if (micro_batch < 0) {
      ServeTick(access, tick);
      continue;
    }
    Slot& slot = *slots_[static_cast<size_t>(slots[action++])];
    const OpContext& context = *slot.context;
    if (tick.tick.phase == PipelinePhase::kForward) {
      slot.pass = StagePass();
      model_.BeginPass(context, 0, batches[static_cast<size_t>(micro_batch)], /*backward=*/true,
                       slot.pass);
      if (!is_first) {
        const ReceiveFrom receive{0, slot.pass.x};
        Work work = links_.forward_from_previous->SendRecvAsync({}, {&receive, 1}, "activations");
        Wait(links_.forward_from_previous, work);
      }
      PooledForward(context, access, tick, model_, 0, recompute, slot.pass);
      if (is_last) continue;
      const SendTo send{1, slot.pass.y};
      slot.send = links_.forward_to_next->SendRecvAsync({&send, 1}, {}, "activations");
      continue;
    }
    if (!is_last) {
      Wait(links_.forward_to_next, slot.send);
      const ReceiveFrom receive{1, slot.pass.dx};
      Work work = links_.backward_from_next->SendRecvAsync({}, {&receive, 1}, "gradients");
      Wait(links_.backward_from_next, work);
    }
    PooledBackward(context, access, tick, model_, 0, loss_scale, --left == 0, loss_sum, slot.pass);
    if (!is_first) SendGradient(slot);
    slot.arena->Release(Arena::Mark());
  }
  if (!is_first) {
    for (Outgoing& outgoing : outgoing_) Wait(links_.backward_to_previous, outgoing.work);
  }
  busy_seconds_ = Now() - start;
  return absl::OkStatus();
}

}  // namespace evenkeel
