// PipelineRun's passes with disaggregated attention: ticks in which all stages run the same phase
// and share their attention.
#include <algorithm>
#include <chrono>
#include <vector>

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

// In which slot of a training step each chunk has its first pass.
std::vector<int> SlotsOfChunks(int ranks, int chunks, int64_t micro_batches, int rank) {
  const PipelineSchedule schedule = SamePhaseSchedule(ranks, chunks, micro_batches);
  const std::vector<int> slots = ActivationSlots(schedule, rank);
  const std::vector<PipelineAction>& actions = schedule.actions[static_cast<size_t>(rank)];
  std::vector<int> first(static_cast<size_t>(chunks));
  for (size_t i = actions.size(); i-- > 0;) first[static_cast<size_t>(actions[i].chunk)] = slots[i];
  return first;
}

}  // namespace

absl::Status PipelineRun::BeginPooled(const PoolSetup& pool, PoolAccess* access) {
  busy_seconds_ = waiting_seconds_ = 0;
  if (pool_arena_ == nullptr) EK_RETURN_IF_ERROR(MakeArena(&pool_arena_, &pool_context_));
  pool_context_->trace = context_.trace;
  if (server_clocks_.empty()) server_clocks_ = MakeServerClocks(context_);
  for (ServerClock& clock : server_clocks_) (void)clock.Take();
  *access = {pool_context_.get(), pool.axis, pool.heads, pool.mode, server_clocks_.data()};
  return absl::OkStatus();
}

void PipelineRun::RunForward(const PoolAccess& access, const PoolTick& tick, int chunk,
                             const PackedBatch& batch, bool backward, Recompute recompute,
                             Slot& slot) {
  slot.pass = StagePass();
  model_.BeginPass(*slot.context, chunk, batch, backward, slot.pass);
  if (!IsFirstStage(chunk)) {
    const ReceiveFrom receive{0, slot.pass.x};
    Work work = links_.forward_from_previous->SendRecvAsync({}, {&receive, 1}, "activations");
    Wait(links_.forward_from_previous, work);
  }
  PooledForward(*slot.context, access, tick, model_, chunk, recompute, slot.pass);
  if (IsLastStage(chunk)) return;
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
  const int chunks = model_.num_chunks();
  const PipelineSchedule schedule = SamePhaseSchedule(shape_.pp, chunks, count);
  const std::vector<int> slots = ActivationSlots(schedule, pp_rank_);
  EK_RETURN_IF_ERROR(MakeSlots(static_cast<int>(PeakInFlight(schedule, pp_rank_))));
  size_t action = 0;
  left_.assign(static_cast<size_t>(chunks), count);
  for (PoolTick& tick : step.ticks) {
    const ArenaScope scope(*pool_arena_);
    Prepare(*pool_context_, pool.heads.of_tasks(), tick);
    const TickPass pass = PassAt(tick.tick, shape_.pp, chunks, count, pp_rank_);
    if (!pass.exists()) {
      ServeTick(access, tick);
      continue;
    }
    Slot& slot = *slots_[static_cast<size_t>(slots[action++])];
    if (tick.tick.phase == PipelinePhase::kForward) {
      RunForward(access, tick, pass.chunk, batches[static_cast<size_t>(pass.micro_batch)],
                 /*backward=*/true, recompute, slot);
      continue;
    }
    if (!IsLastStage(pass.chunk)) {
      Wait(links_.forward_to_next, slot.send);
      const ReceiveFrom receive{1, slot.pass.dx};
      Work work = links_.backward_from_next->SendRecvAsync({}, {&receive, 1}, "gradients");
      Wait(links_.backward_from_next, work);
    }
    const bool completes = --left_[static_cast<size_t>(pass.chunk)] == 0;
    PooledBackward(*slot.context, access, tick, model_, pass.chunk, loss_scale, completes, loss_sum,
                   slot.pass);
    if (!IsFirstStage(pass.chunk)) SendGradient(slot);
    slot.arena->Release(Arena::Mark());
  }
  if (pp_rank_ > 0 || chunks > 1) {
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
  const int chunks = model_.num_chunks();
  const std::vector<int> slot_of = SlotsOfChunks(shape_.pp, chunks, pool.micro_batches, pp_rank_);
  EK_RETURN_IF_ERROR(MakeSlots(1 + *std::max_element(slot_of.begin(), slot_of.end())));
  results->assign(batches.size(), TokenLosses());
  const auto count = static_cast<int64_t>(batches.size());
  // The output of the pass before leaves from the slot. Of a ring of ranks that all wait for that,
  // one goes on to its next chunk in each tick, and with it to another slot.
  const auto empty_slot = [&](int chunk) -> Slot& {
    Slot& slot = *slots_[static_cast<size_t>(slot_of[static_cast<size_t>(chunk)])];
    if (!IsLastStage(chunk)) Wait(links_.forward_to_next, slot.send);
    slot.arena->Release(Arena::Mark());
    return slot;
  };
  for (PoolTick& tick : step.ticks) {
    const ArenaScope scope(*pool_arena_);
    Prepare(*pool_context_, pool.heads.of_tasks(), tick);
    const TickPass pass = PassAt(tick.tick, shape_.pp, chunks, count, pp_rank_);
    if (!pass.exists()) {
      ServeTick(access, tick);
      continue;
    }
    const auto i = static_cast<size_t>(pass.micro_batch);
    Slot& slot = empty_slot(pass.chunk);
    RunForward(access, tick, pass.chunk, batches[i], /*backward=*/false, recompute, slot);
    if (IsLastStage(pass.chunk)) {
      EK_RETURN_IF_ERROR(ReadTokenLosses(*slot.context, slot.pass, &(*results)[i]));
    }
  }
  for (int chunk = 0; chunk < chunks; ++chunk) empty_slot(chunk);
  return WaitForOps(context_);
}

}  // namespace evenkeel
