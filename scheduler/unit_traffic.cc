#include "scheduler/unit_traffic.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "scheduler/stage_order.h"

namespace evenkeel {
namespace {

constexpr int kExactUnit = 0, kEmbeddingUnit = 1, kFirstLayerUnit = 2;

// Units whose gradients may be on their way at a time (parameter_store.cc).
constexpr int64_t kGradientSlots = 2;

// The choices of ParameterStore, without its tensors.
class StoreReplay {
 public:
  StoreReplay(const ModelShape& shape, const RankLayout& layout)
      : shape_(shape), stage_(layout.stage()), ranks_(layout.data_ranks()) {}

  void AcquireWeights(int unit) {
    if (!slots_weights(unit)) return;
    Slot& slot = FindSlot(unit);
    slot.is_expected = false;
    ++slot.users;
  }
  void ReleaseWeights(int unit) {
    if (slots_weights(unit)) --FindSlot(unit).users;
  }
  void PrefetchWeights(int unit) {
    if (slots_weights(unit)) FindSlot(unit).is_expected = true;
  }

  void AcquireGradients(int unit) {
    if (slots_gradients(unit)) FreeGradientSlot(Size(unit)).unit = unit;
  }
  void ReleaseGradients(int unit, bool is_final) {
    if (stage_ == ShardingStage::kOptimizer && is_final && unit != kExactUnit) {
      traffic_.reduced += Size(unit);
    }
    if (!slots_gradients(unit)) return;
    const auto slot = std::find_if(
        gradient_slots_.begin(), gradient_slots_.end(),
        [unit](const GradientSlot& each) { return each.unit == unit && !each.is_reducing; });
    if (slot == gradient_slots_.end()) return;
    traffic_.reduced += Size(unit);
    slot->is_reducing = true;
  }

  // The end of a step: what is left is summed, and the new weights are published.
  void EndStep() {
    for (GradientSlot& slot : gradient_slots_) slot.Finish();
    for (Slot& slot : slots_) {
      slot.unit = -1;
      slot.is_expected = false;
    }
    if (ranks_ == 1) return;
    const int64_t all = shape_.unit_begin.back(), exact = Size(kExactUnit);
    traffic_.all_reduced += stage_ == ShardingStage::kNone ? all : exact;
    if (stage_ == ShardingStage::kOptimizer || stage_ == ShardingStage::kGradients) {
      traffic_.gathered += (all - exact) / ranks_;
    }
  }

  // What was exchanged since the last call, and the memory taken by now.
  UnitTraffic Take() {
    UnitTraffic result = std::exchange(traffic_, UnitTraffic());
    for (const Slot& slot : slots_) result.weight_slots += slot.size;
    for (const GradientSlot& slot : gradient_slots_) {
      result.gradient_slots += slot.size + slot.size / ranks_;
    }
    return result;
  }

 private:
  struct Slot {
    int64_t size = 0;
    int unit = -1;
    int users = 0;
    bool is_expected = false;
  };
  struct GradientSlot {
    int64_t size = 0;
    int unit = -1;
    bool is_reducing = false;
    void Finish() {
      is_reducing = false;
      unit = -1;
    }
  };

  int64_t Size(int unit) const {
    const auto at = static_cast<size_t>(unit);
    return shape_.unit_begin[at + 1] - shape_.unit_begin[at];
  }
  bool slots_weights(int unit) const {
    return stage_ == ShardingStage::kParameters && unit != kExactUnit && Size(unit) > 0;
  }
  bool slots_gradients(int unit) const {
    return (stage_ == ShardingStage::kGradients || stage_ == ShardingStage::kParameters) &&
           unit != kExactUnit && Size(unit) > 0;
  }

  Slot& FindSlot(int unit) {
    const int64_t size = Size(unit);
    Slot* free = nullptr;
    for (Slot& slot : slots_) {
      if (slot.unit == unit) return slot;
      const bool fits = slot.users == 0 && !slot.is_expected && slot.size >= size;
      if (fits && (free == nullptr || slot.size < free->size)) free = &slot;
    }
    if (free == nullptr) {
      slots_.push_back({size});
      free = &slots_.back();
    }
    free->unit = unit;
    traffic_.gathered += size / ranks_;
    return *free;
  }

  GradientSlot& FreeGradientSlot(int64_t size) {
    auto oldest = gradient_slots_.end();
    int64_t count = 0;
    for (auto slot = gradient_slots_.begin(); slot != gradient_slots_.end(); ++slot) {
      if (!(slot->unit < 0 || slot->is_reducing) || slot->size < size) continue;
      if (slot->unit < 0) return *slot;
      if (oldest == gradient_slots_.end()) oldest = slot;
      ++count;
    }
    if (count < kGradientSlots) {
      gradient_slots_.push_back({size});
      return gradient_slots_.back();
    }
    oldest->Finish();
    std::rotate(oldest, oldest + 1, gradient_slots_.end());
    return gradient_slots_.back();
  }

  const ModelShape& shape_;
  ShardingStage stage_;
  int ranks_;
  UnitTraffic traffic_;
  std::vector<Slot> slots_;
  std::vector<GradientSlot> gradient_slots_;
};

// The calls of models/model.cc, and of models/pooled_forward.cc and pooled_backward.cc, where a
// layer whose attention is pooled stays open until the next one has begun.
class PassReplay {
 public:
  PassReplay(const ModelShape& shape, bool pools_attention, StoreReplay& store)
      : shape_(shape), pools_attention_(pools_attention), store_(store) {}

  void Run(const PassEvent& event) {
    switch (event.phase) {
      case PassPhase::kBegin:
        return Begin(event.chunk);
      case PassPhase::kForward:
        return Forward(event.chunk);
      case PassPhase::kBackward:
        return Backward(event.chunk, event.is_final);
    }
  }

 private:
  bool IsPooled(int64_t layer) const {
    const LayerShape& of = shape_.layers[static_cast<size_t>(layer)];
    return pools_attention_ && !of.is_linear && of.block_size == 0;
  }
  static int UnitOf(int64_t layer) { return kFirstLayerUnit + static_cast<int>(layer); }
  int head_unit() const { return static_cast<int>(shape_.unit_begin.size()) - 2; }
  bool begins(int chunk) const { return shape_.is_first && chunk == 0; }
  bool is_last_chunk(int chunk) const {
    return chunk + 1 == static_cast<int>(shape_.chunks.size());
  }
  const ChunkShape& Layers(int chunk) const { return shape_.chunks[static_cast<size_t>(chunk)]; }

  void Begin(int chunk) {
    if (!begins(chunk)) return;
    store_.AcquireWeights(kEmbeddingUnit);
    store_.PrefetchWeights(UnitOf(0));
    store_.ReleaseWeights(kEmbeddingUnit);
  }

  void Forward(int chunk) {
    const ChunkShape layers = Layers(chunk);
    for (int64_t layer = layers.begin; layer < layers.end; ++layer) {
      if (!IsPooled(layer)) CloseForward();
      store_.AcquireWeights(UnitOf(layer));
      if (layer + 1 < layers.end) store_.PrefetchWeights(UnitOf(layer + 1));
      CloseForward();
      open_layer_ = layer;
      if (!IsPooled(layer)) CloseForward();
    }
    CloseForward();
  }
  void CloseForward() {
    if (open_layer_ >= 0) store_.ReleaseWeights(UnitOf(open_layer_));
    open_layer_ = -1;
  }

  void Loss() {
    store_.AcquireWeights(head_unit());
    if (shape_.ties_embedding) store_.AcquireWeights(kEmbeddingUnit);
    store_.AcquireGradients(head_unit());
    if (shape_.ties_embedding) {
      store_.AcquireGradients(kEmbeddingUnit);
      store_.ReleaseGradients(kEmbeddingUnit, /*is_final=*/false);
    }
    store_.ReleaseWeights(head_unit());
    if (shape_.ties_embedding) store_.ReleaseWeights(kEmbeddingUnit);
  }

  void Backward(int chunk, bool is_final) {
    if (is_last_chunk(chunk)) {
      if (shape_.is_last) Loss();
      store_.ReleaseGradients(head_unit(), is_final);
    }
    const ChunkShape layers = Layers(chunk);
    for (int64_t layer = layers.end; layer-- > layers.begin;) {
      if (!IsPooled(layer)) CloseBackward(is_final);
      store_.AcquireWeights(UnitOf(layer));
      if (layer > layers.begin) store_.PrefetchWeights(UnitOf(layer - 1));
      store_.AcquireGradients(UnitOf(layer));
      CloseBackward(is_final);
      open_layer_ = layer;
      if (!IsPooled(layer)) CloseBackward(is_final);
    }
    CloseBackward(is_final);
    if (chunk > 0) return;
    if (begins(chunk)) store_.AcquireGradients(kEmbeddingUnit);
    store_.ReleaseGradients(kEmbeddingUnit, is_final);
    store_.ReleaseGradients(kExactUnit, is_final);
  }

  void CloseBackward(bool is_final) {
    if (open_layer_ >= 0) {
      store_.ReleaseWeights(UnitOf(open_layer_));
      store_.ReleaseGradients(UnitOf(open_layer_), is_final);
    }
    open_layer_ = -1;
  }

  const ModelShape& shape_;
  bool pools_attention_;
  StoreReplay& store_;
  int64_t open_layer_ = -1;
};

}  // namespace

UnitTraffic UnitTrafficOf(const ModelShape& shape, const RankLayout& layout,
                          int64_t micro_batches) {
  const std::vector<PassEvent> events =
      PassEvents(layout.mesh, layout.coord.pp, static_cast<int>(shape.chunks.size()), micro_batches,
                 layout.pools_attention());
  StoreReplay store(shape, layout);
  PassReplay passes(shape, layout.pools_attention(), store);
  // The first step finds no slots yet.
  UnitTraffic traffic;
  for (int step = 0; step < 2; ++step) {
    for (const PassEvent& event : events) passes.Run(event);
    store.EndStep();
    traffic = store.Take();
  }
  return traffic;
}

}  // namespace evenkeel
