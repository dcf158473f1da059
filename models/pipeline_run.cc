#include "models/pipeline_run.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

PipelineRun::PipelineRun(const OpContext& context, Model& model, const PipelineLinks& links,
                         const MeshShape& shape, int pp_rank, MemoryTracker& tracker)
    : context_(context),
      model_(model),
      links_(links),
      shape_(shape),
      pp_rank_(pp_rank),
      tracker_(tracker) {}

absl::Status PipelineRun::MakeArena(std::unique_ptr<Arena>* arena,
                                    std::unique_ptr<OpContext>* context) {
  const int64_t capacity = context_.arena.capacity();
  auto created = context_.cuda == nullptr
                     ? Arena::Create(capacity, tracker_)
                     : Arena::CreateOnGpu(DeviceOf(*context_.cuda), capacity, tracker_);
  EK_RETURN_IF_ERROR(created.status());
  *arena = std::make_unique<Arena>(*std::move(created));
  *context = std::make_unique<OpContext>(
      OpContext{context_.pool, **arena, context_.dtype, context_.cuda, context_.trace});
  return absl::OkStatus();
}

absl::Status PipelineRun::MakeSlots(int count) {
  while (static_cast<int>(slots_.size()) < count) {
    auto slot = std::make_unique<Slot>();
    EK_RETURN_IF_ERROR(MakeArena(&slot->arena, &slot->context));
    slots_.push_back(std::move(slot));
  }
  for (const auto& slot : slots_) slot->context->trace = context_.trace;
  return absl::OkStatus();
}

int64_t PipelineRun::arena_bytes() const {
  int64_t bytes = 0;
  for (const auto& slot : slots_) bytes += slot->arena->peak_bytes();
  return bytes;
}

void PipelineRun::Wait(AxisComm* link, Work& work) {
  const double begin = Now();
  link->Wait(work);
  work = Work();
  waiting_seconds_ += Now() - begin;
}

// Begins an action: makes room for what it receives and starts to receive it.
void PipelineRun::Begin(size_t action, absl::Span<const PackedBatch> batches) {
  Slot& slot = SlotOf(action);
  if (slot.has_begun) return;
  slot.has_begun = true;
  const PipelineAction& what = schedule_.actions[static_cast<size_t>(pp_rank_)][action];
  if (what.phase == PipelinePhase::kBackward) {
    if (IsLastStage(what.chunk)) return;
    const ReceiveFrom receive{1, slot.pass.dx};
    slot.receive = links_.backward_from_next->SendRecvAsync({}, {&receive, 1}, "gradients");
    return;
  }
  slot.pass = StagePass();
  model_.BeginPass(*slot.context, what.chunk, batches[static_cast<size_t>(what.micro_batch)],
                   /*backward=*/true, slot.pass);
  if (IsFirstStage(what.chunk)) return;
  const ReceiveFrom receive{0, slot.pass.x};
  slot.receive = links_.forward_from_previous->SendRecvAsync({}, {&receive, 1}, "activations");
}

// From a buffer of its own: the slot is wanted for the next micro-batch.
void PipelineRun::SendGradient(const Slot& slot) {
  Outgoing& outgoing = outgoing_[num_sent_++ % 2];
  const TensorView dx = slot.pass.dx;
  Wait(links_.backward_to_previous, outgoing.work);
  if (outgoing.buffer.empty() || outgoing.buffer.shape()[0] < dx.num_elements()) {
    auto buffer = Tensor::Create(dx.dtype, {std::max<int64_t>(1, dx.num_elements())},
                                 MemoryPurpose::kWorkspace, tracker_, context_.device());
    EK_CHECK(buffer.ok()) << buffer.status();
    outgoing.buffer = *std::move(buffer);
  }
  const TensorView rows = outgoing.buffer.view().Rows(0, dx.num_elements()).Reshape(dx.shape);
  Copy(context_, dx, rows);
  const SendTo send{0, rows};
  outgoing.work = links_.backward_to_previous->SendRecvAsync({&send, 1}, {}, "gradients");
}

absl::Status PipelineRun::Train(absl::Span<const PackedBatch> batches, double loss_scale,
                                Recompute recompute, TensorView loss_sum) {
  busy_seconds_ = waiting_seconds_ = 0;
  num_sent_ = 0;
  const double start = Now();
  if (shape_.pp == 1) {
    for (size_t i = 0; i < batches.size(); ++i) {
      model_.ForwardBackward(context_, batches[i], loss_scale, recompute, i + 1 == batches.size(),
                             loss_sum);
    }
    busy_seconds_ = Now() - start;
    return absl::OkStatus();
  }
  const auto count = static_cast<int64_t>(batches.size());
  if (schedule_.actions.empty() || schedule_.num_micro_batches != count) {
    schedule_ = InterleavedOneForwardOneBackward(shape_.pp, model_.num_chunks(), count);
    slot_of_ = ActivationSlots(schedule_, pp_rank_);
  }
  EK_RETURN_IF_ERROR(MakeSlots(static_cast<int>(PeakInFlight(schedule_, pp_rank_))));
  left_.assign(static_cast<size_t>(model_.num_chunks()), count);
  const auto& actions = schedule_.actions[static_cast<size_t>(pp_rank_)];
  for (size_t i = 0; i < actions.size(); ++i) {
    const PipelineAction& action = actions[i];
    Slot& slot = SlotOf(i);
    const OpContext& context = *slot.context;
    const bool is_first = IsFirstStage(action.chunk), is_last = IsLastStage(action.chunk);
    Begin(i, batches);
    // What the next action receives may come while this one runs, unless it waits for this one's
    // slot. Not on a GPU: a receive that is under way holds up the host wherever CUDA wants the GPU
    // idle (loading a kernel, more local memory), and with it what its sender waits for.
    const bool looks_ahead = context_.cuda == nullptr;
    if (looks_ahead && i + 1 < actions.size() && slot_of_[i + 1] != slot_of_[i]) {
      Begin(i + 1, batches);
    }
    if (action.phase == PipelinePhase::kForward) {
      if (!is_first) Wait(links_.forward_from_previous, slot.receive);
      model_.Forward(context, action.chunk, recompute, slot.pass);
      slot.has_begun = false;
      if (is_last) continue;
      const SendTo send{1, slot.pass.y};
      slot.send = links_.forward_to_next->SendRecvAsync({&send, 1}, {}, "activations");
      continue;
    }
    if (!is_last) {
      Wait(links_.forward_to_next, slot.send);
      Wait(links_.backward_from_next, slot.receive);
    }
    const bool completes = --left_[static_cast<size_t>(action.chunk)] == 0;
    model_.Backward(context, action.chunk, loss_scale, completes, loss_sum, slot.pass);
    slot.has_begun = false;
    if (!is_first) SendGradient(slot);
    slot.arena->Release(Arena::Mark());
  }
  for (Outgoing& outgoing : outgoing_) {
    if (pp_rank_ > 0 || model_.num_chunks() > 1) {
      Wait(links_.backward_to_previous, outgoing.work);
    }
  }
  busy_seconds_ = Now() - start;
  return absl::OkStatus();
}

absl::Status PipelineRun::ReadTokenLosses(const OpContext& context, const StagePass& pass,
                                          TokenLosses* result) {
  const PackedBatch& tokens = pass.tokens();
  result->losses.resize(tokens.tokens.size());
  EK_RETURN_IF_ERROR(model_.ReadLosses(context, pass, absl::MakeSpan(result->losses)));
  result->targets = tokens.targets;
  result->positions = tokens.positions;
  return absl::OkStatus();
}

absl::Status PipelineRun::Losses(absl::Span<const PackedBatch> batches,
                                 std::vector<TokenLosses>* results) {
  results->assign(batches.size(), TokenLosses());
  for (size_t i = 0; i < batches.size(); ++i) {
    EK_RETURN_IF_ERROR(LossesOf(batches[i], &(*results)[i]));
  }
  return absl::OkStatus();
}

absl::Status PipelineRun::LossesOf(const PackedBatch& batch, TokenLosses* result) {
  for (int chunk = 0; chunk < model_.num_chunks(); ++chunk) {
    const ArenaScope scope(context_.arena);
    StagePass pass;
    model_.BeginPass(context_, chunk, batch, /*backward=*/false, pass);
    if (!IsFirstStage(chunk)) {
      const ReceiveFrom receive{0, pass.x};
      Work work = links_.forward_from_previous->SendRecvAsync({}, {&receive, 1}, "activations");
      links_.forward_from_previous->Wait(work);
    }
    model_.ForwardOnly(context_, chunk, pass);
    if (!IsLastStage(chunk)) {
      const SendTo send{1, pass.y};
      Work work = links_.forward_to_next->SendRecvAsync({&send, 1}, {}, "activations");
      links_.forward_to_next->Wait(work);
      continue;
    }
    EK_RETURN_IF_ERROR(ReadTokenLosses(context_, pass, result));
  }
  EK_RETURN_IF_ERROR(WaitForOps(context_));
  return absl::OkStatus();
}

}  // namespace evenkeel
