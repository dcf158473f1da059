#include "attention/state_travel.h"

#include <algorithm>
#include <numeric>

#include "runtime/ops/elementwise.h"

namespace evenkeel {
namespace {

// Parts of the heads that follow each other through a scan: while one is on its way, the next is
// made ready.
constexpr int64_t kScanParts = 4;

// Heads [begin, end) of state `index`, as [1, heads, D, E].
TensorView HeadsOf(const TensorView& states, int64_t index, int64_t begin, int64_t end) {
  const int64_t rows = states.dim(2), columns = states.dim(3);
  return states.Rows(index, index + 1)
      .Reshape({states.dim(1), rows, columns})
      .Rows(begin, end)
      .Reshape({1, end - begin, rows, columns});
}

TensorView Flat(const TensorView& dense) {
  return dense.Reshape({dense.num_elements()});
}

}  // namespace

StateTravel::StateTravel(const OpContext& context, const ContextPlan& plan,
                         absl::Span<const double> slopes, StateDirection direction, TensorView mine)
    : context_(context), plan_(plan), slopes_(slopes), direction_(direction), mine_(mine) {
  if (plan.strategy.states != StateExchange::kGather) return;
  const std::vector<int64_t>& rows =
      direction == StateDirection::kForward ? plan.after_rows : plan.before_rows;
  Shape shape = mine.shape;
  shape.dims[0] = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  if (shape[0] == 0) return;  // no document is cut
  all_ = context.arena.Allocate(mine.dtype, shape, MemoryPurpose::kWorkspace);
  gather_ = plan.axis->AllGatherAsync(
      mine, all_, rows, direction == StateDirection::kForward ? "states" : "gradients of states");
}

void StateTravel::Finish(TensorView arrived) {
  if (plan_.strategy.states == StateExchange::kScan) return Scan(arrived);
  plan_.axis->Wait(gather_);
  if (arrived.dim(0) == 0) return;
  CombineStates(context_, slopes_,
                direction_ == StateDirection::kForward ? plan_.before_terms : plan_.after_terms,
                all_, arrived);
}

// Forward, the state at a cut is lambda^n times that at the cut before, n tokens further up, plus
// what the piece between adds; backward likewise from the end. All ranks walk documents, parts of
// heads and cuts in one order, so whoever waits for a state waits for one that is on its way.
void StateTravel::Scan(TensorView arrived) {
  const int me = plan_.axis->rank();
  const bool is_forward = direction_ == StateDirection::kForward;
  const int64_t heads = mine_.dim(1), parts = std::min(kScanParts, heads);
  const auto n = static_cast<int64_t>(plan_.cuts.size());
  const TensorView leaving =
      context_.arena.Allocate(mine_.dtype, mine_.shape, MemoryPurpose::kWorkspace);
  std::vector<Work> sends;
  // In the direction of travel.
  const auto cut_at = [&](int64_t i) -> const PieceCut& {
    return plan_.cuts[static_cast<size_t>(is_forward ? i : n - 1 - i)];
  };
  for (int64_t first = 0, end = 0; first < n; first = end) {
    const auto ends = [&](const PieceCut& cut) {
      return is_forward ? cut.ends_document : cut.starts_document;
    };
    for (end = first; !ends(cut_at(end)); ++end) {
    }
    ++end;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t head_begin = heads * part / parts, head_end = heads * (part + 1) / parts;
      const auto slopes = slopes_.subspan(static_cast<size_t>(head_begin),
                                          static_cast<size_t>(head_end - head_begin));
      for (int64_t i = first; i < end; ++i) {
        const PieceCut& cut = cut_at(i);
        const int source = is_forward ? cut.from_rank : cut.to_rank;
        const int target = is_forward ? cut.to_rank : cut.from_rank;
        if (source == me) {
          const int64_t index = is_forward ? cut.from_index : cut.to_index;
          const TensorView out = HeadsOf(leaving, index, head_begin, head_end);
          if (i == first) {
            SetZero(context_, Flat(out));
          } else {
            const PieceCut& last = cut_at(i - 1);
            const int64_t before = is_forward ? last.to_index : last.from_index;
            const StateTerm term{0, 0, is_forward ? cut.from_length : cut.to_length};
            CombineStates(context_, slopes, {&term, 1},
                          HeadsOf(arrived, before, head_begin, head_end), out);
          }
          AddWide(context_, Flat(HeadsOf(mine_, index, head_begin, head_end)), Flat(out));
          const SendTo send{target, out};
          sends.push_back(plan_.axis->SendRecvAsync({&send, 1}, {}, "state"));
        }
        if (target == me) {
          const int64_t index = is_forward ? cut.to_index : cut.from_index;
          const ReceiveFrom receive{source, HeadsOf(arrived, index, head_begin, head_end)};
          Work work = plan_.axis->SendRecvAsync({}, {&receive, 1}, "state");
          plan_.axis->Wait(work);
        }
      }
    }
  }
  for (Work& work : sends) plan_.axis->Wait(work);
}

}  // namespace evenkeel
