#include "attention/ulysses_attention.h"

#include <algorithm>
#include <vector>

#include "attention/softmax_attention.h"
#include "runtime/base/check.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {
namespace {

TensorView Workspace(const OpContext& context, DType dtype, Shape shape) {
  return context.arena.Allocate(dtype, shape, MemoryPurpose::kWorkspace);
}

struct HeadRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// Heads of `total` that rank r of n computes.
HeadRange HeadsOf(int64_t total, int ranks, int rank) {
  if (total >= ranks) return {total * rank / ranks, total * (rank + 1) / ranks};
  const int64_t head = rank / (ranks / total);
  return {head, head + 1};
}

// A tensor that travels: [S, heads, size] of this rank, in rows beside others.
struct Column {
  int64_t heads = 0;  // of all ranks
  int64_t width = 0;  // of a head
  int64_t begin = 0;  // where a rank's share begins in a row
  int64_t share = 0;  // heads of a rank
  HeadRange Of(int rank, int ranks) const { return HeadsOf(heads, ranks, rank); }
};

// Rows of several tensors on their way between "my tokens, all heads" and "all tokens, my heads".
class HeadExchange {
 public:
  HeadExchange(const OpContext& context, const ContextPlan& plan, DType dtype,
               std::initializer_list<Shape> shapes)
      : context_(context), plan_(plan), ranks_(plan.axis->size()) {
    for (const Shape& shape : shapes) {
      Column column{shape[1], shape[2], width_, HeadsOf(shape[1], ranks_, 0).size()};
      EK_CHECK(shape[1] % ranks_ == 0 || ranks_ % shape[1] == 0)
          << shape[1] << " heads over " << ranks_ << " ranks";
      width_ += column.share * column.width;
      columns_.push_back(column);
    }
    by_rank_ = Workspace(context, dtype, {ranks_ * plan.num_mine(), width_});
    rank_order_ = Workspace(context, dtype, {plan.layout.num_tokens(), width_});
    packed_ = Workspace(context, dtype, {plan.layout.num_tokens(), width_});
  }

  // [T, my heads, size] of tensor i, in the order of the packed batch.
  TensorView Packed(size_t i) const { return Part(packed_, i); }

  // Puts [S, heads, size] of tensor i where it is sent from.
  void Pack(size_t i, ConstTensorView x) const {
    for (int rank = 0; rank < ranks_; ++rank) {
      const HeadRange heads = columns_[i].Of(rank, ranks_);
      Copy(context_, x.Slice(1, heads.begin, heads.end).MergeHeads(),
           Part(RowsFor(rank), i).MergeHeads());
    }
  }
  void ToHeads(const char* label) const {
    plan_.axis->AllToAll(by_rank_, MineForEach(), rank_order_, plan_.layout.rows(), label);
    CopyRowRanges(context_, plan_.to_packed, rank_order_, packed_);
  }
  void ToTokens(const char* label) const {
    CopyRowRanges(context_, plan_.to_ranks, packed_, rank_order_);
    plan_.axis->AllToAll(rank_order_, plan_.layout.rows(), by_rank_, MineForEach(), label);
  }
  // Takes [S, heads, size] of tensor i from where it was received; a head that several ranks have
  // computed a part of is their sum.
  void Unpack(size_t i, TensorView x) const {
    int64_t done = 0;
    for (int rank = 0; rank < ranks_; ++rank) {
      const HeadRange heads = columns_[i].Of(rank, ranks_);
      const ConstTensorView from = Part(RowsFor(rank), i).MergeHeads();
      const TensorView to = x.Slice(1, heads.begin, heads.end).MergeHeads();
      if (heads.begin < done) {
        Add(context_, to, from, to);
      } else {
        Copy(context_, from, to);
      }
      done = heads.end;
    }
  }

 private:
  TensorView RowsFor(int rank) const {
    return by_rank_.Rows(rank * plan_.num_mine(), (rank + 1) * plan_.num_mine());
  }
  TensorView Part(const TensorView& rows, size_t i) const {
    const Column& column = columns_[i];
    return rows.Columns(column.begin, column.begin + column.share * column.width)
        .SplitHeads(column.share);
  }
  std::vector<int64_t> MineForEach() const {
    return std::vector<int64_t>(static_cast<size_t>(ranks_), plan_.num_mine());
  }

  const OpContext& context_;
  const ContextPlan& plan_;
  int ranks_;
  int64_t width_ = 0;
  std::vector<Column> columns_;
  TensorView by_rank_;     // [n S, width] of each rank's heads, my tokens
  TensorView rank_order_;  // [T, width] of my heads, each rank's tokens
  TensorView packed_;      // [T, width] the same, in the order of the batch
};

// [S, H] as heads of one number each.
template <typename View>
View AsHeads(const View& statistics) {
  return statistics.SplitHeads(statistics.dim(1));
}

}  // namespace

void UlyssesAttentionForward(const OpContext& context, const ContextPlan& plan, double scale,
                             ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse) {
  const ArenaScope scope(context.arena);
  const HeadExchange there(context, plan, context.dtype, {q.shape, k.shape, v.shape});
  there.Pack(0, q);
  there.Pack(1, k);
  there.Pack(2, v);
  there.ToHeads("q, k and v for heads");
  const HeadExchange back(context, plan, context.dtype, {out.shape});
  const HeadExchange statistics(context, plan, context.wide_dtype(), {AsHeads(lse).shape});
  const TensorView packed_lse = statistics.Packed(0);
  SoftmaxAttentionForward(context, plan.documents, scale, there.Packed(0), there.Packed(1),
                          there.Packed(2), back.Packed(0), packed_lse.MergeHeads());
  back.ToTokens("attention for tokens");
  statistics.ToTokens("statistics for tokens");
  back.Unpack(0, out);
  statistics.Unpack(0, AsHeads(lse));
}

void UlyssesAttentionBackward(const OpContext& context, const ContextPlan& plan, double scale,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, ConstTensorView dout,
                              TensorView dq, TensorView dk, TensorView dv) {
  const ArenaScope scope(context.arena);
  const HeadExchange there(context, plan, context.dtype,
                           {q.shape, k.shape, v.shape, out.shape, dout.shape});
  const HeadExchange statistics(context, plan, context.wide_dtype(), {AsHeads(lse).shape});
  const ConstTensorView inputs[] = {q, k, v, out, dout};
  for (size_t i = 0; i < 5; ++i) there.Pack(i, inputs[i]);
  statistics.Pack(0, AsHeads(lse));
  there.ToHeads("inputs and gradients for heads");
  statistics.ToHeads("statistics for heads");
  const HeadExchange back(context, plan, context.dtype, {q.shape, k.shape, v.shape});
  SoftmaxAttentionBackward(context, plan.documents, scale, there.Packed(0), there.Packed(1),
                           there.Packed(2), there.Packed(3), statistics.Packed(0).MergeHeads(),
                           there.Packed(4), back.Packed(0), back.Packed(1), back.Packed(2),
                           KeyGradients::kWrite);
  back.ToTokens("gradients for tokens");
  back.Unpack(0, dq);
  back.Unpack(1, dk);
  back.Unpack(2, dv);
}

}  // namespace evenkeel
