// A micro-batch's pass through the layers of a rank where softmax attention is disaggregated: two
// nano-batches, halves of the micro-batch's rows, go through each layer in turn, so that one's
// messages travel while the other is computed (ping-pong). Of a layer, on the compute side:
//
//   after(l - 1, 0) before(l, 0) | after(l - 1, 1) before(l, 1) | attend(l, 0) | attend(l, 1) | ...
//
// before: norm and projection, then queries, keys and values are sent; attend: of what servers were
// sent; after: the results come in, output projection and feed-forward. Each waits for nothing but
// its own messages. The backward pass goes the other way, the second nano-batch first: the first
// one's keys get gradients from the second's queries.
//
// Layers of other kinds are computed whole in between.
#pragma once

#include "attention/pool_step.h"
#include "attention/server_pass.h"
#include "models/model.h"
#include "models/stage_pass.h"

namespace evenkeel {

// What a rank brings to its pool. `arena` of the context holds what travels, and is empty between
// ticks.
struct PoolAccess {
  const OpContext* context = nullptr;
  AxisComm* axis = nullptr;  // the pool; null for one rank alone
  AttentionHeads heads;      // of this rank; the same in all softmax layers
  ServerPassMode mode;
  ServerClock* clocks = nullptr;  // MakeServerClocks
};

// Model::Forward and Model::Backward of a pass whose softmax attention follows `tick`, which has
// been prepared. All ranks of the pool run the tick; those without a pass of their own, or with no
// model, serve it.
void PooledForward(const OpContext& context, const PoolAccess& access, const PoolTick& tick,
                   Model& model, int chunk, Recompute recompute, StagePass& pass);
void PooledBackward(const OpContext& context, const PoolAccess& access, const PoolTick& tick,
                    Model& model, int chunk, double loss_scale, bool is_last, TensorView loss_sum,
                    StagePass& pass);
void ServeTick(const PoolAccess& access, const PoolTick& tick);

}  // namespace evenkeel
