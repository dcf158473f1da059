// How core attention spreads over context-parallel ranks: made once a batch from which tokens each
// rank holds (parallel/sequence_layout.h), used by every layer, forward and backward.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "attention/attention_plan.h"
#include "attention/lightning_state.h"
#include "parallel/axis_comm.h"
#include "parallel/context_strategy.h"
#include "parallel/sequence_layout.h"
#include "runtime/ops/copy_rows.h"
#include "runtime/ops/op_context.h"

namespace evenkeel {

// Consecutive pieces of a rank that all continue an earlier piece or none, and are continued or
// not: linear attention treats them in one call.
struct PieceRun {
  int64_t token_begin = 0;
  int64_t token_end = 0;
  std::vector<int64_t> cu_seqlens;  // from 0
  SequencePlan plan;                // of those
  bool has_before = false;          // other pieces of the same documents come before
  bool has_after = false;
  int64_t first_before = 0;  // place of the run's first among the rank's pieces with a piece before
  int64_t first_after = 0;   // likewise with one after
  int64_t num_pieces() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

// Where two pieces of a document meet.
struct PieceCut {
  int from_rank = 0;             // holds the piece before the cut
  int to_rank = 0;               // holds the piece after it
  int64_t from_index = 0;        // among that rank's pieces with a piece after
  int64_t to_index = 0;          // among that rank's pieces with a piece before
  int64_t from_length = 0;       // tokens of the piece before the cut
  int64_t to_length = 0;         // of the one after it
  bool starts_document = false;  // no cut of the document comes before
  bool ends_document = false;    // no cut of the document comes after
};

struct ContextPlan {
  AxisComm* axis = nullptr;
  ContextStrategy strategy;
  SequenceLayout layout;
  RowRanges to_packed;  // rows of all ranks, in rank order -> rows of the packed batch
  RowRanges to_ranks;   // and back

  // Softmax: this rank's queries, packed keys of all ranks.
  TaskPlan tasks, block_tasks;
  // Softmax, whole documents (kUlysses).
  TaskPlan documents;
  // Softmax, kRing: for each step, lists of tasks in ascending order of keys; no two tasks of a
  // list share a query.
  std::vector<std::vector<TaskPlan>> ring_steps;

  // Linear.
  std::vector<PieceRun> runs;
  std::vector<int64_t> before_rows, after_rows;  // of each rank: pieces with one before, after
  std::vector<StateTerm> before_terms;  // states added by pieces of all ranks -> before mine
  std::vector<StateTerm> after_terms;   // their gradients -> after mine
  std::vector<PieceCut> cuts;           // of the batch, by document and position

  int64_t num_before() const { return before_rows[static_cast<size_t>(axis->rank())]; }
  int64_t num_after() const { return after_rows[static_cast<size_t>(axis->rank())]; }
  int64_t num_mine() const { return layout.rows()[static_cast<size_t>(axis->rank())]; }

  // What the plans borrow.
  std::vector<RowRange> to_packed_list, to_ranks_list;
  std::vector<AttentionTask> task_list, block_list, document_list;
  std::vector<std::vector<AttentionTask>> ring_lists;

  explicit ContextPlan(SequenceLayout sequence_layout) : layout(std::move(sequence_layout)) {}
  ContextPlan(const ContextPlan&) = delete;
  ContextPlan& operator=(const ContextPlan&) = delete;
};

struct ContextPlanOptions {
  bool has_softmax = false;  // attention of the axis's ranks for one another, not of a pool
  bool has_linear = false;
  int64_t block_size = 0;  // > 0: attention inside blocks is wanted
  int64_t head_size = 0;
  int64_t num_heads = 0;  // of this rank
  int64_t group = 1;      // query heads that share a key/value head
  bool backward = true;
};

// cu_seqlens [D + 1] of the whole batch. The same on all ranks of `axis` but for what is this
// rank's. What is on a GPU lives in the context's arena.
std::unique_ptr<ContextPlan> MakeContextPlan(const OpContext& context, AxisComm& axis,
                                             const ContextStrategy& strategy,
                                             absl::Span<const int64_t> cu_seqlens,
                                             const ContextPlanOptions& options);

}  // namespace evenkeel
