#include "models/gradient_sum.h"

#include "runtime/ops/copy_rows.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {

GradientSum::GradientSum(const ParameterLayout& layout, const ParameterStore& store,
                         const ModelAxes& axes, bool tie_embeddings)
    : axes_(axes), counts_over_data_(store.is_sharded()) {
  all_.axis = axes.tp;
  key_value_.axis = axes.key_value;
  const auto share = [](Shared& shared, int64_t begin, int64_t count) {
    if (shared.axis == nullptr) return;
    shared.to_packed.push_back({begin, shared.size, count});
    shared.from_packed.push_back({shared.size, begin, count});
    shared.size += count;
  };
  // The last stage's copy of a tied embedding counts on the first stage.
  const bool has_second_embedding =
      tie_embeddings && layout.part().is_last && !layout.part().is_first;
  const int64_t exact_end = layout.unit_begin()[1], embedding_end = layout.unit_begin()[2];
  ForEachOwned(layout, store.owned(), [&](const ParameterSpec& spec, int64_t begin, int64_t count) {
    const bool is_exact = spec.offset < exact_end;
    const bool is_embedding = !is_exact && spec.offset < embedding_end;
    if (spec.copies == TensorCopies::kAll) share(all_, begin, count);
    if (spec.copies == TensorCopies::kKeyValue) share(key_value_, begin, count);
    bool counts = !(is_embedding && has_second_embedding);
    if (spec.copies == TensorCopies::kAll) counts &= PlaceOn(axes.tp) == 0;
    if (spec.copies == TensorCopies::kKeyValue) counts &= PlaceOn(axes.key_value) == 0;
    if (is_exact && counts_over_data_) counts &= PlaceOn(axes.data) == 0;
    if (!counts) return;
    if (!counted_.empty() && counted_.back().end == begin) {
      counted_.back().end = begin + count;
    } else {
      counted_.push_back({begin, begin + count});
    }
  });
  if (axes.tied != nullptr) {
    const RowRange owned = store.owned()[ParameterLayout::kEmbeddingUnit];
    tied_ = {owned.to, owned.to + owned.count};
  }
}

// Gradients of small parameters lie scattered: they travel as one.
void GradientSum::Add(const OpContext& context, const Shared& shared, TensorView gradients) const {
  if (shared.axis == nullptr || shared.size == 0) return;
  const ArenaScope scope(context.arena);
  const TensorView packed =
      context.arena.Allocate(gradients.dtype, {shared.size, 1}, MemoryPurpose::kWorkspace);
  const TensorView rows = gradients.Reshape({gradients.dim(0), 1});
  CopyRowRanges(context, Mirror(context, RowRanges(shared.to_packed)), rows, packed);
  shared.axis->AllReduce(packed, ReduceOp::kSum, "gradients held alike");
  CopyRowRanges(context, Mirror(context, RowRanges(shared.from_packed)), packed, rows);
}

void GradientSum::Finish(const OpContext& context, TensorView gradients,
                         TensorView sum_of_squares) const {
  Add(context, all_, gradients);
  Add(context, key_value_, gradients);
  if (axes_.tied != nullptr) {
    axes_.tied->AllReduce(gradients.Rows(tied_.begin, tied_.end), ReduceOp::kSum,
                          "gradients of the tied embedding");
  }
  for (const Range& range : counted_) {
    AddSquares(context, gradients.Rows(range.begin, range.end), sum_of_squares);
  }
  AxisComm* const data = counts_over_data_ ? axes_.data : nullptr;
  for (AxisComm* axis : {axes_.tp, data, axes_.stages}) {
    if (axis != nullptr) axis->AllReduce(sum_of_squares, ReduceOp::kSum, "norm of the gradient");
  }
}

}  // namespace evenkeel
