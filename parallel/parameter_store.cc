#include "parallel/parameter_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {
namespace {

// Units whose gradients may be on their way at a time.
constexpr size_t kGradientSlots = 2;

// Memory that a slot needs on the way: one that is there is taken, one that is not to be had ends
// the process as an exhausted arena does.
Tensor Allocate(const OpContext& context, DType dtype, int64_t elements, MemoryPurpose purpose,
                MemoryTracker& tracker) {
  auto tensor = Tensor::Create(dtype, {elements}, purpose, tracker, context.device());
  EK_CHECK(tensor.ok()) << tensor.status();
  return *std::move(tensor);
}

}  // namespace

absl::StatusOr<ParameterStore> ParameterStore::Create(const OpContext& context,
                                                      std::vector<int64_t> unit_begin,
                                                      const ParameterStoreOptions& options,
                                                      MemoryTracker& tracker) {
  ParameterStore store;
  store.unit_begin_ = std::move(unit_begin);
  store.options_ = options;
  store.tracker_ = &tracker;
  if (DegreeOf(options.data) == 1) {
    store.options_.data = nullptr;
    store.options_.stage = ShardingStage::kNone;
  }
  const ShardingStage stage = store.options_.stage;
  const bool is_sharded = stage != ShardingStage::kNone;
  const int64_t total = store.unit_begin_.back();
  const int ranks = DegreeOf(store.options_.data);
  store.owned_ = OwnedRanges(store.unit_begin_, stage, ranks, PlaceOn(store.options_.data));
  const auto create = [&](DType dtype, int64_t elements, MemoryPurpose purpose) {
    return Tensor::Create(dtype, {elements}, purpose, tracker, context.device());
  };
  const DType wide = context.wide_dtype();
  const int64_t owned = store.num_owned();
  EK_ASSIGN_OR_RETURN(store.master_, create(wide, owned, MemoryPurpose::kWeights));
  if (context.dtype != wide) {
    EK_ASSIGN_OR_RETURN(store.rounded_, create(context.dtype, owned, MemoryPurpose::kWeights));
  }
  if (stage == ShardingStage::kOptimizer || stage == ShardingStage::kGradients) {
    EK_ASSIGN_OR_RETURN(store.weights_, create(context.dtype, total, MemoryPurpose::kWeights));
    store.gathers_.resize(store.owned_.size());
  }
  if (!options.with_gradients) return store;
  if (stage == ShardingStage::kNone || stage == ShardingStage::kOptimizer) {
    EK_ASSIGN_OR_RETURN(store.gradients_, create(wide, total, MemoryPurpose::kGradients));
  }
  if (is_sharded) {
    EK_ASSIGN_OR_RETURN(store.owned_gradients_, create(wide, owned, MemoryPurpose::kGradients));
  } else if (ranks > 1) {
    store.reducer_ = std::make_unique<GradientReducer>(
        *store.options_.data, store.gradients_.view(), options.bucket_elements);
  }
  return store;
}

std::vector<int64_t> ParameterStore::EqualRows(int unit) const {
  return std::vector<int64_t>(static_cast<size_t>(options_.data->size()), OwnedOf(unit).count);
}

ConstTensorView ParameterStore::GatherSource(int unit) const {
  const RowRange part = OwnedOf(unit);
  const Tensor& source = rounded_.empty() ? master_ : rounded_;
  return source.view().Rows(part.to, part.to + part.count);
}

void ParameterStore::PublishWeights(const OpContext& context, bool is_rounded) {
  if (!rounded_.empty() && !is_rounded) Copy(context, master_.view(), rounded_.view());
  for (auto& slot : slots_) {
    EK_CHECK(slot->users == 0) << "weights of unit " << slot->unit << " are in use";
    options_.data->Wait(slot->gather);
    slot->unit = -1;
    slot->is_expected = false;
  }
  for (int unit = 1; unit < static_cast<int>(gathers_.size()); ++unit) {
    if (UnitSize(unit) == 0) continue;
    const auto at = static_cast<size_t>(unit);
    options_.data->Wait(gathers_[at]);
    gathers_[at] = options_.data->AllGatherAsync(
        GatherSource(unit), weights_.view().Rows(unit_begin_[at], unit_begin_[at + 1]),
        EqualRows(unit), absl::StrCat("weights of unit ", unit));
  }
}

ConstTensorView ParameterStore::AcquireWeights(const OpContext& context, int unit) {
  if (unit == 0) return exact();
  const auto at = static_cast<size_t>(unit);
  const int64_t begin = unit_begin_[at], end = unit_begin_[at + 1];
  switch (options_.stage) {
    case ShardingStage::kNone:
      return (rounded_.empty() ? master_ : std::as_const(rounded_)).view().Rows(begin, end);
    case ShardingStage::kOptimizer:
    case ShardingStage::kGradients:
      options_.data->Wait(gathers_[at]);
      gathers_[at] = Work();
      return std::as_const(weights_).view().Rows(begin, end);
    case ShardingStage::kParameters:
      break;
  }
  if (begin == end) return ConstTensorView();
  Slot& slot = FindSlot(context, unit);
  options_.data->Wait(slot.gather);
  slot.gather = Work();
  slot.is_expected = false;
  ++slot.users;
  return slot.whole.view().Rows(0, end - begin);
}

void ParameterStore::ReleaseWeights(int unit) {
  if (options_.stage != ShardingStage::kParameters || unit == 0 || UnitSize(unit) == 0) return;
  const auto slot = std::find_if(slots_.begin(), slots_.end(),
                                 [unit](const auto& each) { return each->unit == unit; });
  EK_CHECK(slot != slots_.end() && (*slot)->users > 0) << "unit " << unit << " is not acquired";
  --(*slot)->users;
}

void ParameterStore::PrefetchWeights(const OpContext& context, int unit) {
  if (options_.stage != ShardingStage::kParameters || UnitSize(unit) == 0) return;
  FindSlot(context, unit).is_expected = true;
}

// The slot that holds the unit, or is being filled with it from now on.
ParameterStore::Slot& ParameterStore::FindSlot(const OpContext& context, int unit) {
  const int64_t size = UnitSize(unit);
  Slot* free = nullptr;
  for (auto& slot : slots_) {
    if (slot->unit == unit) return *slot;
    const bool fits = slot->users == 0 && !slot->is_expected && slot->whole.shape()[0] >= size;
    if (fits && (free == nullptr || slot->whole.shape()[0] < free->whole.shape()[0])) {
      free = slot.get();
    }
  }
  if (free == nullptr) {
    slots_.push_back(std::make_unique<Slot>());
    free = slots_.back().get();
    free->whole = Allocate(context, context.dtype, size, MemoryPurpose::kWeights, *tracker_);
  }
  free->unit = unit;
  free->gather =
      options_.data->AllGatherAsync(GatherSource(unit), free->whole.view().Rows(0, size),
                                    EqualRows(unit), absl::StrCat("weights of unit ", unit));
  return *free;
}

TensorView ParameterStore::AcquireGradients(const OpContext& context, int unit) {
  if (unit == 0) return exact_gradients();
  const auto at = static_cast<size_t>(unit);
  const int64_t size = UnitSize(unit);
  if (!gradients_.empty()) return gradients_.view().Rows(unit_begin_[at], unit_begin_[at + 1]);
  if (size == 0) return TensorView();
  GradientSlot& slot = FreeGradientSlot(context, unit);
  slot.unit = unit;
  const TensorView whole = slot.whole.view().Rows(0, size);
  SetZero(context, whole);
  return whole;
}

ParameterStore::GradientSlot& ParameterStore::FreeGradientSlot(const OpContext& context, int unit) {
  const int64_t size = UnitSize(unit);
  const auto fits = [&](const GradientSlot& slot) {
    return (slot.unit < 0 || slot.is_reducing) && slot.whole.shape()[0] >= size;
  };
  GradientSlot* oldest = nullptr;
  size_t count = 0;
  for (auto& slot : gradient_slots_) {
    if (!fits(*slot)) continue;
    if (slot->unit < 0) return *slot;
    if (oldest == nullptr) oldest = slot.get();
    ++count;
  }
  if (count < kGradientSlots) {
    auto slot = std::make_unique<GradientSlot>();
    slot->whole =
        Allocate(context, context.wide_dtype(), size, MemoryPurpose::kGradients, *tracker_);
    slot->part = Allocate(context, context.wide_dtype(), size / options_.data->size(),
                          MemoryPurpose::kGradients, *tracker_);
    gradient_slots_.push_back(std::move(slot));
    return *gradient_slots_.back();
  }
  FinishReduction(context, *oldest);
  // The next time another one is the oldest.
  const auto place = std::find_if(gradient_slots_.begin(), gradient_slots_.end(),
                                  [oldest](const auto& slot) { return slot.get() == oldest; });
  std::rotate(place, place + 1, gradient_slots_.end());
  return *oldest;
}

void ParameterStore::FinishReduction(const OpContext& context, GradientSlot& slot) {
  options_.data->Wait(slot.reduction);
  slot.reduction = Work();
  const RowRange part = OwnedOf(slot.unit);
  AddWide(context, slot.part.view().Rows(0, part.count),
          owned_gradients_.view().Rows(part.to, part.to + part.count));
  slot.is_reducing = false;
  slot.unit = -1;
}

void ParameterStore::ReleaseGradients(int unit, bool is_final) {
  const auto at = static_cast<size_t>(unit);
  const int64_t begin = unit_begin_[at], end = unit_begin_[at + 1];
  if (options_.stage == ShardingStage::kNone) {
    if (is_final && reducer_ != nullptr) reducer_->MarkFinal(begin, end);
    return;
  }
  if (unit == 0 || begin == end) return;
  const RowRange part = OwnedOf(unit);
  const std::string label = absl::StrCat("gradients of unit ", unit);
  if (options_.stage == ShardingStage::kOptimizer) {
    if (!is_final) return;
    for (auto& [_, work] : reductions_) options_.data->Poke(work);
    reductions_.emplace_back(unit, options_.data->ReduceScatterAsync(
                                       gradients_.view().Rows(begin, end),
                                       owned_gradients_.view().Rows(part.to, part.to + part.count),
                                       EqualRows(unit), label));
    return;
  }
  const auto slot =
      std::find_if(gradient_slots_.begin(), gradient_slots_.end(),
                   [unit](const auto& each) { return each->unit == unit && !each->is_reducing; });
  if (slot == gradient_slots_.end()) return;
  (*slot)->reduction = options_.data->ReduceScatterAsync((*slot)->whole.view().Rows(0, end - begin),
                                                         (*slot)->part.view().Rows(0, part.count),
                                                         EqualRows(unit), label);
  (*slot)->is_reducing = true;
}

void ParameterStore::FinishGradients(const OpContext& context) {
  if (options_.data == nullptr) return;
  if (reducer_ != nullptr) return reducer_->Finish();
  for (auto& [_, work] : reductions_) options_.data->Wait(work);
  reductions_.clear();
  for (auto& slot : gradient_slots_) {
    if (slot->is_reducing) FinishReduction(context, *slot);
  }
  if (UnitSize(0) > 0) {
    options_.data->AllReduce(exact_gradients(), ReduceOp::kSum, "gradients of exact parameters");
  }
}

void ParameterStore::ClearGradients(const OpContext& context) {
  if (options_.stage == ShardingStage::kOptimizer) SetZero(context, gradients_.view());
}

}  // namespace evenkeel
