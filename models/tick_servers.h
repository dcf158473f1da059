// The server passes of both nano-batches of a tick, layer by layer. Private to models/.
#pragma once

#include <optional>

#include "attention/pool_step.h"
#include "attention/server_pass.h"
#include "models/block_chunks.h"
#include "models/block_spec.h"
#include "models/nano_layout.h"
#include "models/pooled_pass.h"
#include "runtime/tensor/arena.h"

namespace evenkeel {

inline bool IsPooled(const BlockSpec& spec) {
  return spec.core == CoreKind::kSoftmax;
}

// Buffers stay from layer to layer while the same stages take part, so that what of one layer is
// still to be collected may be there when the next one is sent.
class TickServers {
 public:
  TickServers(const PoolAccess& access, const PoolTick& tick)
      : access_(access), tick_(tick), mark_(access.context->arena.mark()) {}
  ~TickServers() { access_.context->arena.Release(mark_); }
  TickServers(const TickServers&) = delete;
  TickServers& operator=(const TickServers&) = delete;

  bool is_done() const { return number_ == tick_.layer_of.size(); }
  // The next layer has other buffers: nothing may be left to collect.
  bool changes() const { return tick_.layer_of[number_] != at_; }
  // Goes on to the next layer.
  void Advance() {
    const bool makes_buffers = changes();
    at_ = tick_.layer_of[number_++];
    if (!makes_buffers) return;
    access_.context->arena.Release(mark_);
    tick_.tick.phase == PipelinePhase::kForward ? MakeForward() : MakeBackward();
  }

  const PoolLayer& layer() const { return *tick_.layers[static_cast<size_t>(at_)]; }
  ServerForward& forward(int n) { return *forward_[n]; }
  ServerBackward& backward(int n) { return *backward_[n]; }
  // Gradients of keys and values from both nano-batches, the second first (KeyGradientSums).
  ConstTensorView returned() const { return returned_; }

  // The next layer, in which this rank has no tokens.
  void Serve() {
    Advance();
    if (tick_.tick.phase == PipelinePhase::kForward) {
      for (int n = 0; n < 2; ++n) forward(n).Dispatch({}, {}, {}, {}, {});
      for (int n = 0; n < 2; ++n) forward(n).Attend();
      for (int n = 0; n < 2; ++n) forward(n).Collect();
    } else {
      for (const int n : {1, 0}) backward(n).Dispatch({});
      for (const int n : {1, 0}) backward(n).Attend();
      for (const int n : {1, 0}) backward(n).Collect();
    }
  }

 private:
  void MakeForward() {
    for (int n = 0; n < 2; ++n) {
      forward_[n].emplace(*access_.context, access_.axis, layer().nano[n], access_.heads,
                          access_.mode, access_.clocks[0]);
    }
  }
  void MakeBackward() {
    const OpContext& context = *access_.context;
    const int64_t second = layer().nano[1].num_returned();
    const int64_t all = second + layer().nano[0].num_returned();
    returned_ = context.arena.Allocate(context.wide_dtype(), {all, access_.heads.kv_width()},
                                       MemoryPurpose::kCommunication);
    const TensorView parts[2] = {returned_.Rows(second, all), returned_.Rows(0, second)};
    for (int n = 0; n < 2; ++n) {
      backward_[n].emplace(context, access_.axis, layer().nano[n], access_.heads, access_.mode,
                           access_.clocks[1], parts[n]);
    }
  }

  const PoolAccess& access_;
  const PoolTick& tick_;
  size_t number_ = 0;
  int at_ = -1;
  Arena::Mark mark_;  // below the buffers
  TensorView returned_;
  std::optional<ServerForward> forward_[2];
  std::optional<ServerBackward> backward_[2];
};

// Queries, keys and values of the rows up to the nano-batch's last one at least: views of
// proj [T, P], or allocated in the arena. The second nano-batch needs the first one's keys too.
inline CoreTensors CoreInputsUpTo(const OpContext& context, const BlockSpec& spec,
                                  const BlockViews<ConstTensorView>& weights,
                                  const TokenLayout& layout, const NanoLayout& nanos, int n,
                                  TensorView proj) {
  if (n == 1 || !spec.copies_qk()) return MakeCoreInputs(context, spec, weights, layout, proj);
  return MakeCoreInputs(context, spec, weights, nanos.part(0), nanos.Tokens(0, proj));
}

// Two layers' [T, P] in turn: of what is computed again or not kept, one layer may be open while
// the next one begins.
class AlternatingRows {
 public:
  AlternatingRows() = default;
  AlternatingRows(const OpContext& context, Shape shape)
      : rows_{Workspace(context, shape), Workspace(context, shape)} {}
  const TensorView& operator()(int64_t layer) const { return rows_[layer % 2]; }

 private:
  TensorView rows_[2];
};

// Of the pooled layers, 0 if there is none.
inline int64_t ProjectionWidth(absl::Span<const BlockSpec> specs) {
  int64_t width = 0;
  for (const BlockSpec& spec : specs) {
    if (IsPooled(spec)) width = spec.projection_width();
  }
  return width;
}

}  // namespace evenkeel
