#include "attention/context_plan.h"

#include <algorithm>
#include <map>

#include "runtime/base/check.h"

namespace evenkeel {
namespace {

// Calls body(piece, its first row on the rank) for each piece of the rank.
template <typename Body>
void ForEachPiece(const SequenceLayout& layout, int rank, const Body& body) {
  int64_t row = 0;
  for (const SequencePiece& piece : layout.pieces(rank)) {
    body(piece, row);
    row += piece.length;
  }
}

bool HasBefore(const SequencePiece& piece) {
  return piece.begin > 0;
}

bool HasAfter(const SequenceLayout& layout, const SequencePiece& piece) {
  const auto document = static_cast<size_t>(piece.document);
  return piece.begin + piece.length <
         layout.cu_seqlens()[document + 1] - layout.cu_seqlens()[document];
}

// My queries against the packed keys of all ranks.
void AddGatheredTasks(ContextPlan& plan, int64_t block_size) {
  const std::vector<int64_t>& cu = plan.layout.cu_seqlens();
  ForEachPiece(plan.layout, plan.axis->rank(), [&](const SequencePiece& piece, int64_t row) {
    const int64_t first = cu[static_cast<size_t>(piece.document)];
    const int64_t end = piece.begin + piece.length;
    plan.task_list.push_back({row, piece.length, first, end});
    if (block_size == 0) return;
    for (int64_t at = piece.begin; at < end;) {
      const int64_t block = at / block_size * block_size;
      const int64_t stop = std::min(end, block + block_size);
      plan.block_list.push_back({row + at - piece.begin, stop - at, first + block, stop - block});
      at = stop;
    }
  });
}

// My queries against the keys of the rank that are here after `step` steps around the ring. A piece
// of keys is before the queries' piece, or the same, or after it.
std::vector<std::vector<AttentionTask>> RingTasks(const ContextPlan& plan, int step) {
  const int ranks = plan.axis->size(), me = plan.axis->rank();
  const int source = (me - step + ranks) % ranks;
  std::map<int64_t, std::vector<std::pair<SequencePiece, int64_t>>> keys;  // by document
  ForEachPiece(plan.layout, source, [&](const SequencePiece& piece, int64_t row) {
    keys[piece.document].emplace_back(piece, row);
  });
  std::vector<std::vector<AttentionTask>> lists;
  ForEachPiece(plan.layout, me, [&](const SequencePiece& queries, int64_t row) {
    const auto found = keys.find(queries.document);
    if (found == keys.end()) return;
    const int64_t end = queries.begin + queries.length;
    size_t list = 0;
    for (const auto& [piece, key_row] : found->second) {
      const int64_t key_end = piece.begin + piece.length;
      if (key_end > end) break;
      if (lists.size() <= list) lists.emplace_back();
      lists[list++].push_back({row, queries.length, key_row, piece.length, end - key_end});
    }
  });
  return lists;
}

void PlanRing(const OpContext& context, const ContextPlanOptions& options, ContextPlan& plan) {
  std::vector<size_t> lists_of_step;
  for (int step = 0; step < plan.axis->size(); ++step) {
    auto lists = RingTasks(plan, step);
    lists_of_step.push_back(lists.size());
    for (auto& list : lists) plan.ring_lists.push_back(std::move(list));
  }
  size_t at = 0;
  for (const size_t count : lists_of_step) {
    plan.ring_steps.emplace_back();
    for (size_t i = 0; i < count; ++i) {
      plan.ring_steps.back().push_back(PlanTasks(
          context, plan.ring_lists[at++], {options.head_size, options.group}, options.backward));
    }
  }
}

// Runs of my pieces, and how many pieces each rank has with one before or after.
void PlanRuns(const OpContext& context, const ContextPlanOptions& options, ContextPlan& plan) {
  const SequenceLayout& layout = plan.layout;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    plan.before_rows.push_back(0);
    plan.after_rows.push_back(0);
    for (const SequencePiece& piece : layout.pieces(rank)) {
      plan.before_rows.back() += HasBefore(piece);
      plan.after_rows.back() += HasAfter(layout, piece);
    }
  }
  int64_t before = 0, after = 0;
  ForEachPiece(layout, plan.axis->rank(), [&](const SequencePiece& piece, int64_t row) {
    const bool has_before = HasBefore(piece), has_after = HasAfter(layout, piece);
    if (plan.runs.empty() || plan.runs.back().has_before != has_before ||
        plan.runs.back().has_after != has_after) {
      PieceRun run;
      run.token_begin = row;
      run.cu_seqlens = {0};
      run.has_before = has_before;
      run.has_after = has_after;
      run.first_before = before;
      run.first_after = after;
      plan.runs.push_back(std::move(run));
    }
    PieceRun& run = plan.runs.back();
    run.token_end = row + piece.length;
    run.cu_seqlens.push_back(run.token_end - run.token_begin);
    before += has_before;
    after += has_after;
  });
  for (PieceRun& run : plan.runs) {
    run.plan = PlanSequences(context, run.cu_seqlens, options.num_heads, options.head_size);
  }
}

// A piece as the exchange of states sees it.
struct PlacedPiece {
  SequencePiece piece;
  int rank = 0;
  int64_t before_index = -1;  // among its rank's pieces with a piece before
  int64_t after_index = -1;
};

// All pieces of the batch, by document and position.
std::vector<PlacedPiece> PlacedPieces(const SequenceLayout& layout) {
  std::vector<PlacedPiece> placed;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    int64_t before = 0, after = 0;
    for (const SequencePiece& piece : layout.pieces(rank)) {
      PlacedPiece each{piece, rank};
      if (HasBefore(piece)) each.before_index = before++;
      if (HasAfter(layout, piece)) each.after_index = after++;
      placed.push_back(each);
    }
  }
  std::sort(placed.begin(), placed.end(), [](const PlacedPiece& a, const PlacedPiece& b) {
    return std::pair(a.piece.document, a.piece.begin) < std::pair(b.piece.document, b.piece.begin);
  });
  return placed;
}

std::vector<int64_t> Offsets(const std::vector<int64_t>& rows) {
  std::vector<int64_t> offsets(rows.size() + 1, 0);
  for (size_t i = 0; i < rows.size(); ++i) offsets[i + 1] = offsets[i] + rows[i];
  return offsets;
}

// Cuts, and which pieces' states reach which of mine.
void PlanStates(ContextPlan& plan) {
  const std::vector<PlacedPiece> pieces = PlacedPieces(plan.layout);
  const int me = plan.axis->rank();
  const auto after_at = Offsets(plan.after_rows), before_at = Offsets(plan.before_rows);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const PlacedPiece& at = pieces[i];
    const auto same = [&](size_t j) { return pieces[j].piece.document == at.piece.document; };
    if (i > 0 && same(i - 1)) {
      const PlacedPiece& last = pieces[i - 1];
      const bool starts = i < 2 || !same(i - 2);
      const bool ends = i + 1 == pieces.size() || !same(i + 1);
      plan.cuts.push_back({last.rank, at.rank, last.after_index, at.before_index, last.piece.length,
                           at.piece.length, starts, ends});
    }
    if (at.rank != me) continue;
    const int64_t end = at.piece.begin + at.piece.length;
    size_t first = i;
    while (first > 0 && same(first - 1)) --first;
    for (size_t j = first; j < i; ++j) {
      const SequencePiece& source = pieces[j].piece;
      plan.before_terms.push_back(
          {at.before_index, after_at[static_cast<size_t>(pieces[j].rank)] + pieces[j].after_index,
           at.piece.begin - source.begin - source.length});
    }
    for (size_t j = i + 1; j < pieces.size() && same(j); ++j) {
      plan.after_terms.push_back(
          {at.after_index, before_at[static_cast<size_t>(pieces[j].rank)] + pieces[j].before_index,
           pieces[j].piece.begin - end});
    }
  }
}

}  // namespace

std::unique_ptr<ContextPlan> MakeContextPlan(const OpContext& context, AxisComm& axis,
                                             const ContextStrategy& strategy,
                                             absl::Span<const int64_t> cu_seqlens,
                                             const ContextPlanOptions& options) {
  auto plan =
      std::make_unique<ContextPlan>(SequenceLayout::Make(strategy.split, cu_seqlens, axis.size()));
  plan->axis = &axis;
  plan->strategy = strategy;
  if (options.has_softmax || options.block_size > 0) {
    plan->to_packed_list = RankOrderToPacked(plan->layout);
    plan->to_ranks_list = PackedToRankOrder(plan->layout);
    plan->to_packed = Mirror(context, RowRanges(plan->to_packed_list));
    plan->to_ranks = Mirror(context, RowRanges(plan->to_ranks_list));
    AddGatheredTasks(*plan, options.block_size);
  }
  const auto plan_tasks = [&](const std::vector<AttentionTask>& list, bool relu) {
    return PlanTasks(context, list, {options.head_size, options.group}, options.backward, relu);
  };
  if (options.block_size > 0) plan->block_tasks = plan_tasks(plan->block_list, /*relu=*/true);
  if (options.has_softmax) {
    switch (strategy.softmax) {
      case SoftmaxExchange::kDisaggregated:
        EK_CHECK(false) << "disaggregated attention follows the plan of its pool";
        break;
      case SoftmaxExchange::kGather:
        plan->tasks = plan_tasks(plan->task_list, /*relu=*/false);
        break;
      case SoftmaxExchange::kRing:
        PlanRing(context, options, *plan);
        break;
      case SoftmaxExchange::kUlysses:
        plan->document_list = TasksOfDocuments(cu_seqlens);
        plan->documents = plan_tasks(plan->document_list, /*relu=*/false);
        break;
    }
  }
  if (options.has_linear) {
    PlanRuns(context, options, *plan);
    PlanStates(*plan);
  }
  return plan;
}

}  // namespace evenkeel
