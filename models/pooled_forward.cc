#include <optional>
#include <utility>

#include "models/block_chunks.h"
#include "models/nano_layout.h"
#include "models/pooled_pass.h"
#include "models/tick_servers.h"
#include "runtime/base/check.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {
namespace {

class ForwardWalk {
 public:
  ForwardWalk(const OpContext& context, const PoolAccess& access, const PoolTick& tick,
              Model& model, int chunk, Recompute recompute, StagePass& pass)
      : context_(context),
        model_(model),
        layers_(model.LocalLayers(chunk)),
        recompute_(recompute),
        pass_(pass),
        nanos_(pass.layout),
        scope_(access.context->arena) {
    if (ComputesProjectionAgain(recompute)) {
      projections_ = AlternatingRows(
          *access.context, {pass.layout.shards.num_tokens(), ProjectionWidth(model.block_specs())});
    }
    servers_.emplace(access, tick);
  }

  void Run() {
    pass_.saved.resize(static_cast<size_t>(layers_.end - layers_.begin));
    pass_.marks.resize(pass_.saved.size());
    TensorView x = pass_.x;
    for (int64_t local = layers_.begin; local < layers_.end; ++local) {
      const TraceScope trace(context_, "layer", static_cast<size_t>(model_.layout().layer(local)),
                             "forward");
      const BlockSpec& spec = SpecOf(local);
      if (!IsPooled(spec) || servers_->changes()) Close();
      const auto weights = model_.AcquireBlock(context_, local);
      if (local + 1 < layers_.end) model_.PrefetchLayer(context_, local + 1);
      pass_.marks[static_cast<size_t>(local - layers_.begin)] = context_.arena.mark();
      const TensorView y = Activations(context_, x.shape);
      SavedOf(local).x = x;
      y_[local % 2] = y;
      if (IsPooled(spec)) {
        PooledLayer(local, weights);
      } else {
        if (!pass_.is_empty()) {
          BlockForward(context_, spec, weights, pass_.layout, recompute_, SavedOf(local), y);
        }
        model_.store().ReleaseWeights(ParameterLayout::UnitOfLayer(local));
      }
      x = y;
    }
    Close();
    pass_.y = x;
    while (!servers_->is_done()) servers_->Serve();  // stages with more layers
  }

 private:
  // A layer whose results from servers are still to come.
  struct OpenLayer {
    bool is_open = false;
    int64_t local = 0;
    BlockViews<ConstTensorView> weights;
  };

  const BlockSpec& SpecOf(int64_t local) const {
    return model_.block_specs()[static_cast<size_t>(local)];
  }
  BlockActivations& SavedOf(int64_t local) {
    return pass_.saved[static_cast<size_t>(local - layers_.begin)];
  }

  void Allocate(int64_t local, BlockActivations& saved) {
    const BlockSpec& spec = SpecOf(local);
    const int64_t tokens = pass_.layout.shards.num_tokens();
    const Shape stream = saved.x.shape;
    saved.core = AllocateCore(context_, spec, pass_.layout);
    saved.proj = ComputesProjectionAgain(recompute_)
                     ? projections_(local)
                     : Activations(context_, {tokens, spec.projection_width()});
    if (recompute_ != Recompute::kNone) return;
    saved.x_mid = Activations(context_, stream);
    saved.pair = Activations(context_, {tokens, 2 * spec.intermediate_size});
    if (context_.cuda == nullptr) return;
    saved.normed = Activations(context_, stream);
    saved.normed_mid = Activations(context_, stream);
  }

  void PooledLayer(int64_t local, const BlockViews<ConstTensorView>& weights) {
    EK_CHECK(!SpecOf(local).output_norm) << "a norm of softmax attention's output is not pooled";
    Allocate(local, SavedOf(local));
    const OpenLayer previous = std::exchange(open_, {true, local, weights});
    servers_->Advance();
    for (int n = 0; n < 2; ++n) {
      if (previous.is_open) After(previous, n);
      Before(open_, n);
    }
    if (previous.is_open) Release(previous);
    for (int n = 0; n < 2; ++n) servers_->forward(n).Attend();
  }

  void Before(const OpenLayer& layer, int n) {
    const TraceScope trace(context_, "pre-attention");
    const BlockSpec& spec = SpecOf(layer.local);
    const BlockActivations& saved = SavedOf(layer.local);
    PreAttentionForward(context_, spec, layer.weights, nanos_.part(n), nanos_.Stream(n, saved.x),
                        nanos_.Stream(n, saved.normed), nanos_.Tokens(n, saved.proj));
    const ArenaScope scope(context_.arena);
    const CoreTensors core =
        CoreInputsUpTo(context_, spec, layer.weights, pass_.layout, nanos_, n, saved.proj);
    servers_->forward(n).Dispatch(core.q, core.k, core.v, saved.core.out.SplitHeads(spec.num_heads),
                                  saved.core.lse);
  }

  void After(const OpenLayer& layer, int n) {
    const BlockSpec& spec = SpecOf(layer.local);
    const BlockActivations& saved = SavedOf(layer.local);
    servers_->forward(n).Collect();
    const TraceScope trace(context_, "post-attention");
    PostAttentionForward(context_, spec, layer.weights, nanos_.part(n), nanos_.Of(n, saved),
                         nanos_.Stream(n, y_[layer.local % 2]));
  }

  // What the backward pass computes again is not there then.
  void Release(const OpenLayer& layer) {
    if (ComputesProjectionAgain(recompute_)) SavedOf(layer.local).proj = TensorView();
    model_.store().ReleaseWeights(ParameterLayout::UnitOfLayer(layer.local));
  }

  void Close() {
    if (!open_.is_open) return;
    const OpenLayer layer = std::exchange(open_, {});
    for (int n = 0; n < 2; ++n) After(layer, n);
    Release(layer);
  }

  const OpContext& context_;
  Model& model_;
  LayerRange layers_;
  Recompute recompute_;
  StagePass& pass_;
  NanoLayout nanos_;
  ArenaScope scope_;             // of the arena for what travels
  AlternatingRows projections_;  // that are not kept
  std::optional<TickServers> servers_;
  TensorView y_[2];  // of even and odd layers
  OpenLayer open_;
};

}  // namespace

void PooledForward(const OpContext& context, const PoolAccess& access, const PoolTick& tick,
                   Model& model, int chunk, Recompute recompute, StagePass& pass) {
  ForwardWalk(context, access, tick, model, chunk, recompute, pass).Run();
}

void ServeTick(const PoolAccess& access, const PoolTick& tick) {
  TickServers servers(access, tick);
  while (!servers.is_done()) servers.Serve();
}

}  // namespace evenkeel
