// Which ranks of a job are still there, found out beside MPI: MPI (before version 5) says nothing
// of a rank that is gone, and a wait for it does not end.
//
// Every rank keeps a TCP connection to rank 0, over which a thread sends a heartbeat. A rank whose
// connection breaks, or that is silent for longer than the patience, is lost: rank 0 tells all
// others. There is no way back. A lost rank that is only stopped is killed by a rank of its host,
// and leaves by itself should it go on. Where rank 0 is lost, every other rank finds out for
// itself.
//
// Surviving a loss also takes an mpirun that lets the others live (--enable-recovery), calls that
// can be ended (Communicator::SetInterrupt) and groups without the lost rank
// (Communicator::MakeGroup).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/tcp_socket.h"

namespace evenkeel {

struct LivenessOptions {
  double heartbeat_s = 0.5;
  // Longer than any time for which a healthy process may not be scheduled.
  double patience_s = 5;
  // Called on Liveness's thread with every rank that is lost. May end the process.
  std::function<void(int rank, const std::string& who)> on_loss;
};

class Liveness {
 public:
  // Collective over `world`, which must outlive it and is told of losses (NoteLostRanks). From then
  // on SIGPIPE is ignored.
  static absl::StatusOr<std::unique_ptr<Liveness>> Create(Communicator& world,
                                                          const LivenessOptions& options);
  // Says goodbye: a rank that leaves is not lost.
  ~Liveness();
  Liveness(const Liveness&) = delete;
  Liveness& operator=(const Liveness&) = delete;

  // All thread-safe.

  // The ranks lost so far, in rank 0's order.
  std::vector<int> lost() const;
  int num_lost() const { return num_lost_.load(std::memory_order_acquire); }
  // Waits until more than `known` are lost; false after `seconds`.
  bool AwaitLoss(int known, double seconds);

  // Rank 0 tells all others that the first `num_lost` losses are dealt with together, and no more;
  // the others wait for the `number`th time that it does (from 1), however long. Rank 0's word is
  // the one that counts: a rank may have heard of more losses by then. Fails with kUnavailable if
  // rank 0 is lost.
  void Announce(int num_lost);
  absl::StatusOr<int> AwaitAnnouncement(int number);

  // "rank 5 (host node7, pid 314)".
  std::string Describe(int rank) const;

 private:
  struct Process {
    std::string host;
    int pid = 0;
    int64_t start_time = 0;  // of the process, in the kernel's ticks: pids are used again
  };
  struct Peer {
    TcpSocket socket;
    int64_t heard_ns = 0;
    bool has_left = false;  // said goodbye, or is lost
  };
  // What rank 0 sends.
  struct Notice {
    int32_t kind;  // kLost, kAnnounced
    int32_t value;
  };

  Liveness(Communicator& world, const LivenessOptions& options, std::vector<Process> processes)
      : world_(world), rank_(world.rank()), options_(options), processes_(std::move(processes)) {}
  absl::Status ConnectToRank0(const std::vector<std::string>& addresses, int port, uint64_t token);
  absl::Status AcceptRanks(const TcpSocket& listener, uint64_t token);
  void RunRank0();
  void RunOther();
  void NoteLoss(int rank);
  void Broadcast(Notice notice);
  // Kills what is left of a rank of this host, if this rank is the first of those that remain.
  void Fence(int lost_rank);

  Communicator& world_;
  const int rank_;
  const LivenessOptions options_;
  const std::vector<Process> processes_;  // of all ranks
  std::atomic<int> num_lost_{0};
  std::atomic<bool> must_stop_{false};

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable news_;
  std::vector<int> lost_;
  std::vector<int> announced_;

  std::mutex send_mutex_;    // of rank 0's sending, and of who has left
  std::vector<Peer> peers_;  // rank 0: of all ranks
  TcpSocket to_rank0_;
  std::thread thread_;
};

}  // namespace evenkeel
