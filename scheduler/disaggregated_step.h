// A simulated training step with disaggregated core attention: the plans and the schedule that a
// run executes, on the timeline of a cluster. Pure.
//
// The pool is all ranks of one tensor-parallel coordinate: pipeline rank by pipeline rank the
// owners of a micro-batch, then dedicated servers. Rank `pp` of p has the stages pp, p + pp, ... of
// the costs, a chunk each. A tick of the pipeline goes through the layers of one chunk of every
// rank side by side; of each softmax layer and nano-batch
//   pre       norm, projection to Q, K, V; packing                  compute stream of the owner
//   dispatch  Q, K, V (backward dO, O, lse, Q, K, V) to servers     communication streams
//   attend    a server's tasks                                      compute stream of the server
//   return    out, lse (backward dQ, dK, dV)                        communication streams
//   post      unpacking, projection, MLP; with the next layer's pre compute stream of the owner
// In the ping-pong order of a rank, post and pre of nano-batch 0, of 1, attend of 0, of 1, messages
// of one nano-batch pass while the other computes. Backward the second nano-batch goes first, since
// queries of it have keys in the first. Activations and their gradients go to the next stage when
// both nano-batches are done; the head, forward and backward, begins the backward pass. Where the
// chunks of a tick differ in their number of softmax layers, those with fewer are done earlier and
// only serve; before the others go on, all that is under way is waited for, as in a run. Likewise
// before other layers between softmax layers, which are computed whole (there in a stage that has
// such ones; here in all).
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "scheduler/cluster.h"
#include "scheduler/sim_timeline.h"
#include "scheduler/step_costs.h"
#include "scheduler/tick_plan.h"

namespace evenkeel {

enum class MessageMode {
  kPingPong,   // messages beside computation
  kOneStream,  // nothing beside anything
  kSignal,     // messages of one byte: what a step took if bytes cost nothing
};

// In which order a rank computes the pieces of a layer.
enum class PieceOrder {
  kPingPong,          // post and pre of both nano-batches, then attend of both
  kStaggered,         // a nano-batch's post and pre, then the other one's attend: dispatches pass
                      // beside attention, returns beside nothing
  kStaggeredForward,  // that forward, ping-pong backward, where much comes back
};

struct DisaggregatedSetup {
  int pp = 1;  // divides the number of stages that the costs have
  int replicas = 1;
  int ranks = 1;  // of a replica, over which its tokens are laid
  int tp = 1;
  int servers = 0;           // dedicated ones, behind the owners
  bool owners_serve = true;  // false: attention on dedicated servers alone
  // kContiguous: a micro-batch is one nano-batch, as with parallel.ping_pong: off.
  SequenceSplit split = SequenceSplit::kHalves;
  bool has_residents = true;  // whole documents that stay where they are are not copied
  MessageMode mode = MessageMode::kPingPong;
  PieceOrder order = PieceOrder::kPingPong;
  DisaggregationOptions planning;
  // What plans balance; without it the costs of the step.
  std::optional<std::pair<AttentionCost, AttentionCost>> planned_costs;  // forward, backward
  bool balance = true;  // false: every owner computes its own queries (tasks are not moved)

  int owners_of_stage() const { return replicas * ranks; }
  int num_owners() const { return pp * owners_of_stage(); }
  int num_ranks() const { return num_owners() + servers; }
};

// What moves in the step, of the layers that a plan serves; forward, bytes of Q, K and V.
struct PlanSummary {
  int64_t plans = 0;
  double heaviest = 1;     // load over the mean, the worst of all plans
  double max_receive = 0;  // bytes, of any server in any plan
  double max_send = 0;
  double mean_receive = 0;      // of all servers and plans
  double planning_seconds = 0;  // of the slowest plan: a wall clock's, unlike all else
};

struct SimulatedStep {
  double seconds = 0;
  std::vector<SimBusy> busy;  // by rank
  PlanSummary plans;
  std::vector<SimSpan> spans;  // if they were asked for
};

SimulatedStep SimulateDisaggregated(const DisaggregatedSetup& setup, const ClusterShape& cluster,
                                    const StepCosts& costs, ReplicaBatches cu_seqlens,
                                    bool record_spans = false);

// Mean over ranks of the time in which nothing is computed, of the step.
double IdleShare(const SimulatedStep& step);

}  // namespace evenkeel
