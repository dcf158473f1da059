// A plan of disaggregated attention as one rank carries it out: which of its rows go to which
// server, what it computes for others, and where everything lies in the buffers that travel. Made
// once a nano-batch, used by every layer. Pure but for what Prepare puts on a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention_plan.h"
#include "runtime/ops/copy_rows.h"
#include "runtime/ops/op_context.h"
#include "runtime/ops/sum_rows.h"
#include "scheduler/disaggregation_plan.h"

namespace evenkeel {

// Rows [begin, begin + count) of a buffer that go to a peer or come from it.
struct RowMessage {
  int peer = 0;
  int64_t begin = 0;
  int64_t count = 0;
  int round = 0;  // of the exchange (MessageRounds), the same at both ends

  bool operator==(const RowMessage&) const = default;
};

// The way of one kind of row, queries or keys, from owners to servers.
//
// A server's rows are in the order of (document, position), whoever owns them; what one owner has
// of them end to end is one message, which is received in place. Both sides find the same messages
// in the same order.
struct RowRoute {
  int64_t num_sent = 0;              // rows of the send buffer, server by server
  std::vector<RowRange> sent;        // this rank's rows -> send buffer
  std::vector<RowMessage> sends;     // of the send buffer
  int64_t num_held = 0;              // rows of this rank's server buffer
  std::vector<RowRange> kept;        // this rank's rows -> its own server buffer
  std::vector<RowMessage> receives;  // of the server buffer
  std::vector<RowRange> sent_back;   // send buffer -> this rank's rows
  std::vector<RowRange> kept_back;   // server buffer -> this rank's rows
};

// The gradient of keys comes from every server that had them. The sums, rows [count] -> this rank's
// rows, of terms in a buffer of what came back; see KeyGradientSums.
struct KeyGradientList {
  std::vector<RowSegment> segments;
  std::vector<int64_t> terms;
};

struct ServerExchange {
  // Whole documents that this rank holds and computes for itself: their rows stay where they are.
  std::vector<AttentionTask> resident_list;
  // All others travel, or are copied beside what others sent.
  RowRoute queries, keys;
  // Of this rank as a server, in rows of its server buffers.
  std::vector<AttentionTask> task_list;
  std::string label = "attend";  // in a timeline: with what the plan foretold
  double planned_seconds = 0;    // of the residents and the tasks, a layer, in the plan's phase

  // Gradients of keys come back into a buffer of num_returned() rows: first those of the send
  // buffer, then those this rank kept, in the order of keys.kept. A rank's rows of one piece that
  // one server had, from the piece's beginning on:
  struct KeyInterval {
    int64_t row = 0;  // of this rank
    int64_t count = 0;
    int64_t returned = 0;  // row of that buffer
    int64_t order = 0;     // first query of the document that the server computed
  };
  std::vector<KeyInterval> key_intervals;  // by server, this rank last
  std::vector<RowRange> kept_returned;     // server buffer -> that buffer
  int64_t num_kept_keys = 0;
  int64_t num_returned() const { return keys.num_sent + num_kept_keys; }

  // What layers use; made by Prepare.
  TaskPlan resident_tasks, tasks;
  RowRanges sent_queries, kept_queries, sent_queries_back, kept_queries_back;
  RowRanges sent_keys, kept_keys, returned_keys;
};

// The part of `rank` in the plan. `has_residents`: queries, keys and values lie where they are
// until attention is computed, so that resident_list may be used.
ServerExchange MakeServerExchange(const AttentionPool& pool, const DisaggregationPlan& plan,
                                  int rank, bool has_residents);

// Sums for this rank's rows in two nano-batches, of which the first has `first_rows`: keys of the
// first serve queries of both, those of the second queries of the second. What came back in the
// second lies in rows [0, second.num_returned()) of the buffer, what in the first after it. Terms
// of a row are in the order of the queries they come from, whichever server computed them, so that
// the sum does not depend on that.
void KeyGradientSums(const ServerExchange& first, const ServerExchange& second, int64_t first_rows,
                     KeyGradientList& first_sums, KeyGradientList& second_sums);

// Plans the tasks and mirrors the lists. What is on a GPU lives in the context's arena.
void Prepare(const OpContext& context, const TaskHeads& heads, bool backward,
             ServerExchange& exchange);

}  // namespace evenkeel
