#include "attention/server_pass.h"

#include "attention/message_group.h"
#include "attention/softmax_attention.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/step_trace.h"

namespace evenkeel {
namespace {

// Where it does not fit, the error names the purpose.
TensorView Buffer(const OpContext& context, DType dtype, Shape shape) {
  return context.arena.Allocate(dtype, shape, MemoryPurpose::kCommunication);
}

void WaitFor(AxisComm* pool, Work& work) {
  if (pool != nullptr) pool->Wait(work);
  work = Work();
}

// Where the parts of a row lie.
struct KeyValueColumns {
  TensorView keys, values;
  KeyValueColumns(const AttentionHeads& heads, const TensorView& kv)
      : keys(kv.Columns(0, heads.num_kv_heads * heads.key_size)),
        values(kv.Columns(heads.num_kv_heads * heads.key_size, heads.kv_width())) {}
};

// This rank's rows to where they are sent from, and to its own server buffer.
void CopyOut(const OpContext& context, const RowRanges& sent, const RowRanges& kept,
             ConstTensorView rows, TensorView sent_to, TensorView kept_to) {
  if (sent.size() > 0) CopyRowRanges(context, sent, rows, sent_to);
  if (kept.size() > 0) CopyRowRanges(context, kept, rows, kept_to);
}

// The way back.
void CopyBack(const OpContext& context, const RowRanges& sent_back, const RowRanges& kept_back,
              ConstTensorView from_others, ConstTensorView from_here, TensorView rows) {
  if (sent_back.size() > 0) CopyRowRanges(context, sent_back, from_others, rows);
  if (kept_back.size() > 0) CopyRowRanges(context, kept_back, from_here, rows);
}

void PackKeys(const OpContext& context, const ServerExchange& exchange, const AttentionHeads& heads,
              ConstTensorView k, ConstTensorView v, const TensorView& sent_kv,
              const TensorView& kv) {
  if (k.empty()) return;
  const KeyValueColumns sent(heads, sent_kv), kept(heads, kv);
  CopyOut(context, exchange.sent_keys, exchange.kept_keys, k.MergeHeads(), sent.keys, kept.keys);
  CopyOut(context, exchange.sent_keys, exchange.kept_keys, v.MergeHeads(), sent.values,
          kept.values);
}

}  // namespace

std::vector<ServerClock> MakeServerClocks(const OpContext& context) {
  std::vector<ServerClock> clocks;
  for (int phase = 0; phase < 2; ++phase) clocks.emplace_back(context);
  return clocks;
}

ServerForward::ServerForward(const OpContext& context, AxisComm* pool,
                             const ServerExchange& exchange, const AttentionHeads& heads,
                             const ServerPassMode& mode, ServerClock& clock)
    : context_(context),
      pool_(pool),
      exchange_(exchange),
      heads_(heads),
      mode_(mode),
      clock_(clock) {
  const DType dtype = context.dtype, wide = context.wide_dtype();
  const int64_t sent = exchange.queries.num_sent, held = exchange.queries.num_held;
  sent_q_ = Buffer(context, dtype, {sent, heads.q_width()});
  sent_kv_ = Buffer(context, dtype, {exchange.keys.num_sent, heads.kv_width()});
  back_out_ = Buffer(context, dtype, {sent, heads.out_width()});
  back_lse_ = Buffer(context, wide, {sent, heads.num_heads});
  q_ = Buffer(context, dtype, {held, heads.q_width()});
  kv_ = Buffer(context, dtype, {exchange.keys.num_held, heads.kv_width()});
  out_ = Buffer(context, dtype, {held, heads.out_width()});
  lse_ = Buffer(context, wide, {held, heads.num_heads});
}

void ServerForward::Dispatch(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                             TensorView out, TensorView lse) {
  const TraceScope trace(context_, "dispatch");
  my_q_ = q;
  my_k_ = k;
  my_v_ = v;
  my_out_ = out;
  my_lse_ = lse;
  if (!q.empty()) {
    CopyOut(context_, exchange_.sent_queries, exchange_.kept_queries, q.MergeHeads(), sent_q_, q_);
    PackKeys(context_, exchange_, heads_, k, v, sent_kv_, kv_);
  }
  MessageGroup group(mode_);
  group.Send(exchange_.queries.sends, sent_q_);
  group.Send(exchange_.keys.sends, sent_kv_);
  group.Receive(exchange_.queries.receives, q_);
  group.Receive(exchange_.keys.receives, kv_);
  dispatch_ = group.Start(pool_, "queries and keys to servers");
}

void ServerForward::Attend() {
  const TraceScope all(context_, exchange_.label.c_str());
  clock_.planned += exchange_.planned_seconds;
  if (!exchange_.resident_list.empty()) {
    const TraceScope trace(context_, "resident documents");
    const OpTimerScope timer(*clock_.timer);
    SoftmaxAttentionForward(context_, exchange_.resident_tasks, heads_.scale, my_q_, my_k_, my_v_,
                            my_out_, my_lse_);
  }
  WaitFor(pool_, dispatch_);
  if (!exchange_.task_list.empty()) {
    const TraceScope trace(context_, "tasks");
    const OpTimerScope timer(*clock_.timer);
    const KeyValueColumns columns(heads_, kv_);
    SoftmaxAttentionForward(
        context_, exchange_.tasks, heads_.scale, q_.SplitHeads(heads_.num_heads),
        columns.keys.SplitHeads(heads_.num_kv_heads),
        columns.values.SplitHeads(heads_.num_kv_heads), out_.SplitHeads(heads_.num_heads), lse_);
  }
  MessageGroup group(mode_);
  group.Send(exchange_.queries.receives, out_);
  group.Send(exchange_.queries.receives, lse_);
  group.Receive(exchange_.queries.sends, back_out_);
  group.Receive(exchange_.queries.sends, back_lse_);
  return_ = group.Start(pool_, "attention from servers");
}

void ServerForward::Collect() {
  WaitFor(pool_, return_);
  if (my_out_.empty()) return;
  const TraceScope trace(context_, "collect");
  CopyBack(context_, exchange_.sent_queries_back, exchange_.kept_queries_back, back_out_, out_,
           my_out_.MergeHeads());
  CopyBack(context_, exchange_.sent_queries_back, exchange_.kept_queries_back, back_lse_, lse_,
           my_lse_);
}

ServerBackward::ServerBackward(const OpContext& context, AxisComm* pool,
                               const ServerExchange& exchange, const AttentionHeads& heads,
                               const ServerPassMode& mode, ServerClock& clock, TensorView returned)
    : context_(context),
      pool_(pool),
      exchange_(exchange),
      heads_(heads),
      mode_(mode),
      clock_(clock),
      returned_(returned) {
  const DType dtype = context.dtype, wide = context.wide_dtype();
  const int64_t sent = exchange.queries.num_sent, held = exchange.queries.num_held;
  sent_rows_ = Buffer(context, dtype, {sent, query_width()});
  sent_lse_ = Buffer(context, wide, {sent, heads.num_heads});
  sent_kv_ = Buffer(context, dtype, {exchange.keys.num_sent, heads.kv_width()});
  back_dq_ = Buffer(context, dtype, {sent, heads.q_width()});
  rows_ = Buffer(context, dtype, {held, query_width()});
  lse_ = Buffer(context, wide, {held, heads.num_heads});
  kv_ = Buffer(context, dtype, {exchange.keys.num_held, heads.kv_width()});
  dq_ = Buffer(context, dtype, {held, heads.q_width()});
  dkv_ = Buffer(context, wide, {exchange.keys.num_held, heads.kv_width()});
}

void ServerBackward::Dispatch(const Rows& rows) {
  const TraceScope trace(context_, "dispatch");
  mine_ = rows;
  if (!rows.q.empty()) {
    const auto copy = [&](const ConstTensorView& from, const TensorView& to_send,
                          const TensorView& to_keep) {
      CopyOut(context_, exchange_.sent_queries, exchange_.kept_queries, from, to_send, to_keep);
    };
    int64_t column = 0;
    for (const ConstTensorView& from : {rows.q, rows.out, rows.dout}) {
      const int64_t end = column + from.dim(1) * from.dim(2);
      copy(from.MergeHeads(), sent_rows_.Columns(column, end), rows_.Columns(column, end));
      column = end;
    }
    copy(rows.lse, sent_lse_, lse_);
    PackKeys(context_, exchange_, heads_, rows.k, rows.v, sent_kv_, kv_);
  }
  MessageGroup group(mode_);
  group.Send(exchange_.queries.sends, sent_rows_);
  group.Send(exchange_.queries.sends, sent_lse_);
  group.Send(exchange_.keys.sends, sent_kv_);
  group.Receive(exchange_.queries.receives, rows_);
  group.Receive(exchange_.queries.receives, lse_);
  group.Receive(exchange_.keys.receives, kv_);
  dispatch_ = group.Start(pool_, "gradients of attention to servers");
}

void ServerBackward::Attend() {
  const TraceScope all(context_, exchange_.label.c_str());
  clock_.planned += exchange_.planned_seconds;
  if (!exchange_.resident_list.empty()) {
    const TraceScope trace(context_, "resident documents");
    const OpTimerScope timer(*clock_.timer);
    SoftmaxAttentionBackward(context_, exchange_.resident_tasks, heads_.scale, mine_.q, mine_.k,
                             mine_.v, mine_.out, mine_.lse, mine_.dout, mine_.dq, mine_.dk,
                             mine_.dv, KeyGradients::kWrite);
  }
  WaitFor(pool_, dispatch_);
  if (!exchange_.task_list.empty()) {
    const TraceScope trace(context_, "tasks");
    const OpTimerScope timer(*clock_.timer);
    const KeyValueColumns kv(heads_, kv_), dkv(heads_, dkv_);
    const int64_t q_end = heads_.q_width(), out_end = q_end + heads_.out_width();
    const int64_t h = heads_.num_heads, g = heads_.num_kv_heads;
    SoftmaxAttentionBackward(
        context_, exchange_.tasks, heads_.scale, rows_.Columns(0, q_end).SplitHeads(h),
        kv.keys.SplitHeads(g), kv.values.SplitHeads(g), rows_.Columns(q_end, out_end).SplitHeads(h),
        lse_, rows_.Columns(out_end, query_width()).SplitHeads(h), dq_.SplitHeads(h),
        dkv.keys.SplitHeads(g), dkv.values.SplitHeads(g), KeyGradients::kWriteWide);
  }
  MessageGroup group(mode_);
  group.Send(exchange_.queries.receives, dq_);
  group.Send(exchange_.keys.receives, dkv_);
  group.Receive(exchange_.queries.sends, back_dq_);
  group.Receive(exchange_.keys.sends, returned_);
  return_ = group.Start(pool_, "gradients from servers");
}

void ServerBackward::Collect() {
  WaitFor(pool_, return_);
  if (mine_.dq.empty()) return;
  const TraceScope trace(context_, "collect");
  CopyBack(context_, exchange_.sent_queries_back, exchange_.kept_queries_back, back_dq_, dq_,
           mine_.dq.MergeHeads());
  if (exchange_.returned_keys.size() > 0) {
    CopyRowRanges(context_, exchange_.returned_keys, dkv_, returned_);
  }
}

void SumKeyGradients(const OpContext& context, const AttentionHeads& heads,
                     const RowSegments& segments, const Positions& terms, ConstTensorView returned,
                     TensorView dk, TensorView dv) {
  if (segments.size() == 0) return;
  const int64_t key_columns = heads.num_kv_heads * heads.key_size;
  SumRowRanges(context, segments, terms, returned.Columns(0, key_columns), dk.MergeHeads());
  SumRowRanges(context, segments, terms, returned.Columns(key_columns, heads.kv_width()),
               dv.MergeHeads());
}

}  // namespace evenkeel
