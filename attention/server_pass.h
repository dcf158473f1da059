// Disaggregated core attention of one nano-batch, one layer after the other (DistCA, arXiv
// 2510.18121): queries, keys and values travel to the servers of a plan, attention is computed
// there, results travel back. Servers keep nothing between forward and backward pass.
//
// Each pass has three calls, between which the caller computes something else: Dispatch sends,
// Attend waits for what other ranks sent, computes and sends back, Collect waits for that. All
// ranks of the pool make the same calls in the same order, those without tokens or tasks too. What
// a rank computes for itself is computed while messages are on their way; for that the tensors
// given to Dispatch stay as they are until Attend.
//
// Shapes: T rows of this rank; q [T, H, Dq], k [T, G, Dq], v [T, G, D], out [T, H, D], lse [T, H].
// Bytes sent per query and per key and server, in numbers of the dtype: forward H Dq and G (Dq + D)
// there, H D and H statistics back; backward H (Dq + 2 D) and H statistics, and G (Dq + D) there,
// H Dq and G (Dq + D) numbers of the wide dtype back. docs/disaggregation.md
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "attention/server_exchange.h"
#include "parallel/axis_comm.h"
#include "runtime/ops/op_context.h"
#include "runtime/ops/op_timer.h"

namespace evenkeel {

struct AttentionHeads {
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // G
  int64_t key_size = 0;      // Dq
  int64_t value_size = 0;    // D
  double scale = 1;          // of the logits

  int64_t q_width() const { return num_heads * key_size; }
  int64_t out_width() const { return num_heads * value_size; }
  int64_t kv_width() const { return num_kv_heads * (key_size + value_size); }
  TaskHeads of_tasks() const { return {std::max(key_size, value_size), num_heads / num_kv_heads}; }
  bool operator==(const AttentionHeads&) const = default;
};

// For measuring what communication costs.
struct ServerPassMode {
  bool overlaps = true;  // false: every message is waited for where it is sent
  bool signals = false;  // messages of one number: results are wrong, dependencies are right
};

// Sums over calls of Attend, of one phase.
struct ServerTimes {
  double planned = 0;  // what the plan's cost model foretold (DisaggregationPlan::load)
  double seconds = 0;  // that attention took
};

// Takes these times.
struct ServerClock {
  explicit ServerClock(const OpContext& context) : timer(MakeOpTimer(context)) {}
  // Returns the sums since the last call; on a GPU it waits for the attention among them.
  ServerTimes Take() { return {std::exchange(planned, 0.0), timer->TakeSeconds()}; }

  double planned = 0;
  std::unique_ptr<OpTimer> timer;
};
// Two: forward and backward.
std::vector<ServerClock> MakeServerClocks(const OpContext& context);

class ServerForward {
 public:
  // Buffers live in the context's arena. `pool` is null for one rank alone. All references must
  // outlive the object.
  ServerForward(const OpContext& context, AxisComm* pool, const ServerExchange& exchange,
                const AttentionHeads& heads, const ServerPassMode& mode, ServerClock& clock);

  // out and lse receive the nano-batch's rows of this rank, by Collect. Empty views: no tokens.
  void Dispatch(ConstTensorView q, ConstTensorView k, ConstTensorView v, TensorView out,
                TensorView lse);
  void Attend();
  void Collect();

 private:
  const OpContext& context_;
  AxisComm* pool_;
  const ServerExchange& exchange_;
  AttentionHeads heads_;
  ServerPassMode mode_;
  ServerClock& clock_;
  TensorView sent_q_, sent_kv_, back_out_, back_lse_;  // of the owner
  TensorView q_, kv_, out_, lse_;                      // of the server
  ConstTensorView my_q_, my_k_, my_v_;                 // given to Dispatch
  TensorView my_out_, my_lse_;
  Work dispatch_, return_;
};

class ServerBackward {
 public:
  // `returned` [exchange.num_returned(), G (Dq + D)] of the wide dtype receives the gradients of
  // keys and values (KeyGradientSums).
  ServerBackward(const OpContext& context, AxisComm* pool, const ServerExchange& exchange,
                 const AttentionHeads& heads, const ServerPassMode& mode, ServerClock& clock,
                 TensorView returned);

  struct Rows {
    ConstTensorView q, k, v, out, lse, dout;
    // Receive the nano-batch's rows of this rank by Collect; dk and dv only those of whole
    // documents that stay here: the others' come from `returned`.
    TensorView dq, dk, dv;
  };
  void Dispatch(const Rows& rows);
  void Attend();
  // Writes all of `returned`.
  void Collect();

 private:
  // q, out and dout side by side.
  int64_t query_width() const { return heads_.q_width() + 2 * heads_.out_width(); }

  const OpContext& context_;
  AxisComm* pool_;
  const ServerExchange& exchange_;
  AttentionHeads heads_;
  ServerPassMode mode_;
  ServerClock& clock_;
  TensorView returned_;
  TensorView sent_rows_, sent_lse_, sent_kv_, back_dq_;  // of the owner
  TensorView rows_, lse_, kv_, dq_, dkv_;                // of the server
  Rows mine_;
  Work dispatch_, return_;
};

// Writes dk [T, G, Dq] and dv [T, G, D] at the rows of the list's segments.
void SumKeyGradients(const OpContext& context, const AttentionHeads& heads,
                     const RowSegments& segments, const Positions& terms, ConstTensorView returned,
                     TensorView dk, TensorView dv);

}  // namespace evenkeel
