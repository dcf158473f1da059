#include <optional>
#include <utility>

#include "models/block_chunks.h"
#include "models/nano_layout.h"
#include "models/pooled_pass.h"
#include "models/tick_servers.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {
namespace {

class BackwardWalk {
 public:
  BackwardWalk(const OpContext& context, const PoolAccess& access, const PoolTick& tick,
               Model& model, int chunk, bool is_last, StagePass& pass)
      : context_(context),
        access_(access),
        model_(model),
        layers_(model.LocalLayers(chunk)),
        is_last_(is_last),
        pass_(pass),
        nanos_(pass.layout),
        scope_(access.context->arena) {
    const Shape projection{pass.layout.shards.num_tokens(), ProjectionWidth(model.block_specs())};
    for (const BlockActivations& saved : pass.saved) {
      // What the forward pass did not keep is computed again.
      if (!saved.proj.empty() || saved.core.lse.empty()) continue;
      projections_ = AlternatingRows(*access.context, projection);
      break;
    }
    gradients_ = AlternatingRows(*access.context, projection);
    dout_ = Workspace(*access.context, {pass.layout.shards.num_tokens(), access.heads.out_width()});
    servers_.emplace(access, tick);
  }

  void Run() {
    for (int64_t local = layers_.end; local-- > layers_.begin;) {
      const TraceScope trace(context_, "layer", static_cast<size_t>(model_.layout().layer(local)),
                             "backward");
      const BlockSpec& spec = SpecOf(local);
      if (!IsPooled(spec) || servers_->changes()) Close();
      const int unit = ParameterLayout::UnitOfLayer(local);
      const auto weights = model_.AcquireBlock(context_, local);
      if (local > layers_.begin) model_.PrefetchLayer(context_, local - 1);
      const auto gradients = model_.layout().Block(
          local, model_.store().AcquireGradients(context_, unit), model_.store().exact_gradients());
      if (IsPooled(spec)) {
        PooledLayer({true, local, weights, gradients, SavedOf(local)});
        continue;
      }
      if (!pass_.is_empty()) {
        BlockBackward(context_, spec, weights, gradients, pass_.layout, SavedOf(local), pass_.dx);
      }
      Release(local);
    }
    Close();
    while (!servers_->is_done()) servers_->Serve();  // stages with more layers
  }

 private:
  // A layer whose gradients from servers are still to come.
  struct OpenLayer {
    bool is_open = false;
    int64_t local = 0;
    BlockViews<ConstTensorView> weights;
    BlockViews<TensorView> gradients;
    BlockActivations saved;
  };

  const BlockSpec& SpecOf(int64_t local) const {
    return model_.block_specs()[static_cast<size_t>(local)];
  }
  const BlockActivations& SavedOf(int64_t local) const {
    return pass_.saved[static_cast<size_t>(local - layers_.begin)];
  }

  void PooledLayer(OpenLayer layer) {
    if (layer.saved.proj.empty()) ProjectAgain(layer);
    const OpenLayer above = std::exchange(open_, layer);
    servers_->Advance();
    for (const int n : {1, 0}) {
      if (above.is_open) Before(above, n);
      After(open_, n);
    }
    if (above.is_open) Release(above.local);
    for (const int n : {1, 0}) servers_->backward(n).Attend();
  }

  void ProjectAgain(OpenLayer& layer) {
    const TraceScope trace(context_, "pre-attention again");
    BlockActivations& saved = layer.saved;
    saved.proj = projections_(layer.local);
    for (int n = 0; n < 2; ++n) {
      PreAttentionForward(context_, SpecOf(layer.local), layer.weights, nanos_.part(n),
                          nanos_.Stream(n, saved.x), nanos_.Stream(n, saved.normed),
                          nanos_.Tokens(n, saved.proj));
    }
  }

  // Of what comes after attention; what the servers need is then on its way.
  void After(const OpenLayer& layer, int n) {
    const TraceScope trace(context_, "post-attention backward");
    const BlockSpec& spec = SpecOf(layer.local);
    const BlockActivations& saved = layer.saved;
    const TensorView dproj = gradients_(layer.local);
    PostAttentionBackward(context_, spec, layer.weights, layer.gradients, nanos_.part(n),
                          nanos_.Of(n, saved), nanos_.Stream(n, pass_.dx), nanos_.Tokens(n, dout_),
                          nanos_.Tokens(n, dproj));
    const ArenaScope scope(context_.arena);
    const CoreTensors core =
        CoreInputsUpTo(context_, spec, layer.weights, pass_.layout, nanos_, n, saved.proj);
    const auto dparts = PartsOf(spec, dproj);
    servers_->backward(n).Dispatch(
        {core.q, core.k, core.v, saved.core.out.SplitHeads(spec.num_heads), saved.core.lse,
         dout_.SplitHeads(spec.num_heads), dparts.q, dparts.k, dparts.v});
  }

  // Of what comes before attention.
  void Before(const OpenLayer& layer, int n) {
    const BlockSpec& spec = SpecOf(layer.local);
    const BlockActivations& saved = layer.saved;
    const TensorView dproj = gradients_(layer.local);
    const auto dparts = PartsOf(spec, dproj);
    servers_->backward(n).Collect();
    SumKeyGradients(context_, access_.heads, servers_->layer().segments[n],
                    servers_->layer().terms[n], servers_->returned(), dparts.k, dparts.v);
    const TraceScope trace(context_, "pre-attention backward");
    // Softmax layers rotate q and k, whose gradients need no more of them than proj has.
    const auto part = PartsOf(spec, nanos_.Tokens(n, dproj));
    CoreInputsBackward(context_, spec, layer.weights, layer.gradients, nanos_.part(n),
                       nanos_.Tokens(n, saved.proj), CoreTensors(), {part.q, part.k, part.v},
                       nanos_.Tokens(n, dproj));
    PreAttentionBackward(context_, spec, layer.weights, layer.gradients, nanos_.part(n),
                         nanos_.Stream(n, saved.x), nanos_.Stream(n, saved.normed),
                         nanos_.Tokens(n, dproj), nanos_.Stream(n, pass_.dx));
  }

  void Release(int64_t local) {
    const int unit = ParameterLayout::UnitOfLayer(local);
    context_.arena.Release(pass_.marks[static_cast<size_t>(local - layers_.begin)]);
    model_.store().ReleaseWeights(unit);
    model_.store().ReleaseGradients(unit, is_last_);
  }

  void Close() {
    if (!open_.is_open) return;
    const OpenLayer layer = std::exchange(open_, {});
    for (const int n : {1, 0}) Before(layer, n);
    Release(layer.local);
  }

  const OpContext& context_;
  const PoolAccess& access_;
  Model& model_;
  LayerRange layers_;
  bool is_last_;
  StagePass& pass_;
  NanoLayout nanos_;
  ArenaScope scope_;  // of the arena for what travels
  AlternatingRows projections_, gradients_;
  TensorView dout_;  // [T, H D]
  std::optional<TickServers> servers_;
  OpenLayer open_;
};

}  // namespace

void PooledBackward(const OpContext& context, const PoolAccess& access, const PoolTick& tick,
                    Model& model, int chunk, double loss_scale, bool is_last, TensorView loss_sum,
                    StagePass& pass) {
  model.BeginBackward(context, chunk, loss_scale, is_last, loss_sum, pass);
  BackwardWalk(context, access, tick, model, chunk, is_last, pass).Run();
  model.FinishBackward(context, chunk, is_last, pass);
}

}  // namespace evenkeel
