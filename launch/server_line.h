// What the ranks of the mesh and dedicated attention servers tell each other on the host: orders
// before a pass, loads after it; and how they go on when a server is lost.
//
// A lost server takes nothing with it but results of the pass under way: attention keeps no state.
// The ranks of the mesh end that pass without it (messages to the pool do nothing any more, all
// others go on, so that no rank waits for another), agree that it was not whole, make a pool of the
// servers that are left, plan anew and compute the pass again. Weights have not changed by then. A
// pass has ended for good when all have agreed that it was whole; who is lost later is missed in
// the next one.
//
// A lost rank of the mesh has weights nobody else has: the job ends, exit code kPeersLost.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/server_pass.h"
#include "launch/attention_planner.h"
#include "launch/parallel_config.h"
#include "parallel/mesh_comms.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/liveness.h"

namespace evenkeel {

// What each server of the pool measured in a pass: the sums over tensor-parallel ranks, by rank of
// the pool.
struct PoolLoads {
  std::vector<ServerLoad> loads;
  double most_sent_bytes = 0;  // of any rank
};

// What one rank measured.
struct RankLoad {
  ServerTimes forward, backward;
  double sent_bytes = 0;
};

// Of a pool whose servers are the ranks of `comm`, on all of them. Collective.
absl::StatusOr<PoolLoads> GatherLoads(Communicator& comm, int tp, const RankLoad& mine);

// What the servers of a pool do next.
enum class PoolWork {
  kNone,        // the run has ended
  kStep,        // a training step
  kEvaluation,  // a round of held-out samples
};

struct ServerOrder {
  PoolWork work = PoolWork::kNone;
  int64_t step = 0;   // steps done
  int64_t round = 0;  // of an evaluation
  // Of the training pass before, by rank of the pool, in the first order after it; empty if it was
  // not whole.
  std::vector<ServerLoad> loads;
};

class ServerLine {
 public:
  // Collective over `world`, which must outlive it. `mesh_comm`: the ranks of the mesh; null on a
  // server. A rank that is silent for `lost_after_s` is lost; where mpirun ends a job that loses a
  // rank, nobody looks for lost ones.
  static absl::StatusOr<std::unique_ptr<ServerLine>> Create(Communicator& world,
                                                            Communicator* mesh_comm,
                                                            const ParallelPlan& plan,
                                                            double lost_after_s);

  // Whether the job goes on without a server that is lost.
  bool outlives_servers() const { return liveness_ != nullptr; }
  // Those that are left, by their number at the start.
  const std::vector<int>& servers() const { return servers_; }
  // Lets the calls of the mesh's pool end when a server is lost, and those of `device_world`, on
  // which the mesh was made: all ranks make no call any more.
  void Watch(Communicator& device_world, MeshComms& mesh) const;

  // On the ranks of the mesh, all of them:

  // Tells the servers.
  absl::Status Order(const ServerOrder& order);
  // Whether this rank has heard of a loss not dealt with yet.
  bool misses_server() const;
  // After a pass. *is_whole: no rank of the mesh misses a server (`is_interrupted`: this one's pool
  // was). The loads mean nothing if it was not.
  absl::StatusOr<PoolLoads> Collect(const RankLoad& mine, bool is_interrupted, bool* is_whole);
  // After one that was not whole. Returns who was lost. `device_world`: of the mesh's
  // communicators.
  absl::StatusOr<std::string> Regroup(Communicator& device_world, MeshComms& mesh);

  // On a server:

  // Waits for the next order. kUnavailable: a server was lost, call Rejoin.
  absl::StatusOr<ServerOrder> NextOrder();
  absl::Status Report(const RankLoad& mine);
  // Returns whether this server still serves: where a tensor-parallel place has lost it, the ranks
  // of the other places leave too.
  absl::StatusOr<bool> Rejoin(Communicator& device_world, MeshComms& mesh);

 private:
  ServerLine(Communicator& world, Communicator* mesh_comm, const ParallelPlan& plan);
  int num_mesh_ranks() const { return static_cast<int>(mesh_.num_ranks()); }
  std::vector<int> ServerRanks() const;
  // Forgets the servers of lost ranks; returns who they were.
  std::string Remove(const std::vector<int>& lost);
  absl::Status Join(int num_lost, Communicator& device_world, MeshComms& mesh);
  void OnLoss(int rank, const std::string& who);

  Communicator& world_;
  Communicator* mesh_comm_;
  MeshShape mesh_;
  double lost_after_s_ = 0;
  std::vector<int> servers_;
  int num_dealt_with_ = 0;  // losses
  int num_announced_ = 0;
  std::vector<std::unique_ptr<Communicator>> groups_;  // the last one: mesh and servers left
  // Of messages; in place for as long as an interrupted call may use them.
  std::vector<double> order_, report_, reports_;
  std::atomic<bool> is_joining_{false};
  std::unique_ptr<Liveness> liveness_;  // last: its thread calls OnLoss
};

}  // namespace evenkeel
