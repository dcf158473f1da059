// PipelineRun's passes with disaggregated attention: ticks in which all stages run the same phase
// and share their attention.
#include <algorithm>
#include <chrono>

#include "models/pipeline_run.h"
#include "models/pooled_pass.h"
#include "parallel/phase_schedule.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

absl::Status PipelineRun::BeginPooled(const PoolSetup& pool, PoolAccess* access) {
  busy_seconds_ = waiting_seconds_ = 0;
  EK_CHECK(model_.num_chunks() == 1) << "disaggregated attention with virtual stages";
  if (pool_arena_ == nullptr) EK_RETURN_IF_ERROR(MakeArena(&pool_arena_, &pool_context_));
  pool_context_->trace = context_.trace;
  if (server_clocks_.empty()) server_clocks_ = MakeServerClocks(context_);
  for (ServerClock& clock : server_clocks_) (void)clock.Take();
  *access = {pool_context_.get(), pool.axis, pool.heads, pool.mode, server_clocks_.data()};
  return absl::OkStatus();
}

void PipelineRun::RunForward(const PoolAccess& access, const PoolTick& tick,
                             const PackedBatch& batch, bool backward, Recompute recompute,
                             Slot& slot) {
  slot.pass = StagePass();
  model_.BeginPass(*slot.context, 0, batch, backward, slot.pass);
  if (!IsFirstStage(0)) {
    const ReceiveFrom receive{0, slot.pass.x};
    Work work = links_.forward_from_previous->SendRecvAsync({}, {&receive, 1}, "activations");
    Wait(links_.forward_from_previous, work);
  }
  PooledForward(*slot.context, access, tick, model_, 0, recompute, slot.pass);
  if (IsLastStage(0)) return;
  const SendTo send{1, slot.pass.y};
  slot.send = links_.forward_to_next->SendRecvAsync({&send, 1}, {}, "activations");
}

absl::Status PipelineRun::TrainPooled(absl::Span<const PackedBatch> batches, double loss_scale,
                                      Recompute recompute, TensorView loss_sum,
                                      const PoolSetup& pool, PoolStep& step) {
  const double start = Now();
  num_sent_ = 0;
  PoolAccess access;
  EK_RETURN_IF_ERROR(BeginPooled(pool, &access));
  const auto count = static_cast<int64_t>(batches.size());
  const PipelineSchedule schedule = SamePhaseSchedule(shape_.pp, count);
  const std::vector<int> slots = ActivationSlots(schedule, pp_rank_);
  EK_RETURN_IF_ERROR(MakeSlots(static_cast<int>(PeakInFlight(schedule, pp_rank_))));
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
    if (tick.tick.phase == PipelinePhase::kForward) {
      RunForward(access, tick, batches[static_cast<size_t>(micro_batch)], /*backward=*/true,
                 recompute, slot);
      continue;
    }
    if (!is_last) {
      Wait(links_.forward_to_next, slot.send);
      const ReceiveFrom receive{1, slot.pass.dx};
      Work work = links_.backward_from_next->SendRecvAsync({}, {&receive, 1}, "gradients");
      Wait(links_.backward_from_next, work);
    }
    PooledBackward(*slot.context, access, tick, model_, 0, loss_scale, --left == 0, loss_sum,
                   slot.pass);
    if (!is_first) SendGradient(slot);
    slot.arena->Release(Arena::Mark());
  }
  if (!is_first) {
    for (Outgoing& outgoing : outgoing_) Wait(links_.backward_to_previous, outgoing.work);
  }
  busy_seconds_ = Now() - start;
  return absl::OkStatus();
}

absl::Status PipelineRun::LossesPooled(absl::Span<const PackedBatch> batches, Recompute recompute,
                                       const PoolSetup& pool, PoolStep& step,
                                       std::vector<TokenLosses>* results) {
  PoolAccess access;
  EK_RETURN_IF_ERROR(BeginPooled(pool, &access));
  // One pass at a time, whatever follows: training has a slot at least.
  EK_RETURN_IF_ERROR(MakeSlots(1));
  Slot& slot = *slots_.front();
  results->assign(batches.size(), TokenLosses());
  const auto count = static_cast<int64_t>(batches.size());
  // The output of the pass before leaves from the slot.
  const auto empty_slot = [&] {
    if (!IsLastStage(0)) Wait(links_.forward_to_next, slot.send);
    slot.arena->Release(Arena::Mark());
  };
  for (PoolTick& tick : step.ticks) {
    const ArenaScope scope(*pool_arena_);
    Prepare(*pool_context_, pool.heads.of_tasks(), tick);
    const int64_t micro_batch = MicroBatchAt(tick.tick, shape_.pp, count, pp_rank_);
    if (micro_batch < 0) {
      ServeTick(access, tick);
      continue;
    }
    const auto i = static_cast<size_t>(micro_batch);
    empty_slot();
    RunForward(access, tick, batches[i], /*backward=*/false, recompute, slot);
    if (IsLastStage(0)) {
      EK_RETURN_IF_ERROR(ReadTokenLosses(*slot.context, slot.pass, &(*results)[i]));
    }
  }
  empty_slot();
  return WaitForOps(context_);
}

}  // namespace evenkeel
