// The product whose weight is split by columns over tensor-parallel ranks (Megatron-LM's
// row-parallel linear layer): each rank has a part of what is summed over. Private to models/.
#pragma once

#include "models/linear.h"
#include "parallel/token_shards.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {

class RowParallel {
 public:
  // `width`: columns of the output.
  RowParallel(const OpContext& context, const TokenShards& shards, int64_t width, const char* label)
      : context_(context), shards_(shards), scatter_(context, shards, width, label) {}

  // y = sum over the ranks of x w^T, + bias + residual, of one chunk: x [c, K] of all its tokens,
  // w [width, K]; residual and y [share, width], which must stay until Finish. bias may be empty.
  void Start(int64_t chunk, const Linear& linear, const LinearOperand& x, ConstTensorView bias,
             ConstTensorView residual, TensorView y) {
    if (shards_.is_alone()) return linear.Forward(x, bias, residual, y);
    // One rank adds the bias.
    linear.Forward(x, PlaceOn(shards_.axis()) == 0 ? bias : ConstTensorView(), ConstTensorView(),
                   scatter_.Partial(chunk));
    scatter_.Start(chunk, y);
  }
  void Finish(int64_t chunk, ConstTensorView residual, TensorView y) {
    if (shards_.is_alone()) return;
    scatter_.Finish(chunk);
    Add(context_, y, residual, y);
  }

 private:
  const OpContext& context_;
  const TokenShards& shards_;
  ChunkScatter scatter_;
};

// dx = sum over the ranks of dy w, the gradient of what entered a product whose weight is split by
// rows (column-parallel). dy [c, N], w [N, width], dx [share, width].
class ColumnParallelBackward {
 public:
  ColumnParallelBackward(const OpContext& context, const TokenShards& shards, int64_t width,
                         const char* label)
      : shards_(shards), scatter_(context, shards, width, label) {}

  void Start(int64_t chunk, const Linear& linear, const LinearOperand& dy, TensorView dx) {
    if (shards_.is_alone()) return linear.BackwardInput(dy, dx);
    linear.BackwardInput(dy, scatter_.Partial(chunk));
    scatter_.Start(chunk, dx);
  }
  void Finish(int64_t chunk) {
    if (!shards_.is_alone()) scatter_.Finish(chunk);
  }

 private:
  const TokenShards& shards_;
  ChunkScatter scatter_;
};

}  // namespace evenkeel
