#include "launch/server_line.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/failure_report.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"

namespace evenkeel {
namespace {

constexpr double kHeartbeatSeconds = 0.5;
constexpr int kReportValues = 5;  // of RankLoad, as numbers
constexpr int kLoadValues = 4;    // of ServerLoad
constexpr int kOrderHeader = 4;

// Open MPI's mpirun tells its processes what it was told (--enable-recovery).
bool LauncherOutlivesRanks() {
  const char* value = std::getenv("OMPI_MCA_orte_enable_recovery");
  return value != nullptr && (std::string(value) == "1" || std::string(value) == "true");
}

void ToNumbers(const RankLoad& load, double* numbers) {
  numbers[0] = load.forward.planned;
  numbers[1] = load.forward.seconds;
  numbers[2] = load.backward.planned;
  numbers[3] = load.backward.seconds;
  numbers[4] = load.sent_bytes;
}

void AddLoad(const double* numbers, ServerLoad& load, PoolLoads& pool) {
  for (int phase = 0; phase < 2; ++phase) {
    load.planned[phase] += numbers[2 * phase];
    load.seconds[phase] += numbers[2 * phase + 1];
  }
  pool.most_sent_bytes = std::max(pool.most_sent_bytes, numbers[4]);
}

TensorView ViewOf(std::vector<double>& numbers) {
  return {numbers.data(), DType::kF64, {static_cast<int64_t>(numbers.size())}};
}

}  // namespace

absl::StatusOr<PoolLoads> GatherLoads(Communicator& comm, int tp, const RankLoad& mine) {
  std::vector<double> row(kReportValues), all(static_cast<size_t>(kReportValues * comm.size()));
  ToNumbers(mine, row.data());
  EK_RETURN_IF_ERROR(
      comm.AllGather(TensorView(row.data(), DType::kF64, {1, kReportValues}),
                     TensorView(all.data(), DType::kF64, {comm.size(), kReportValues}),
                     "loads of attention servers"));
  PoolLoads pool;
  pool.loads.resize(static_cast<size_t>(comm.size() / tp));
  for (int rank = 0; rank < comm.size(); ++rank) {
    AddLoad(&all[static_cast<size_t>(kReportValues * rank)],
            pool.loads[static_cast<size_t>(rank / tp)], pool);
  }
  return pool;
}

ServerLine::ServerLine(Communicator& world, Communicator* mesh_comm, const ParallelPlan& plan)
    : world_(world), mesh_comm_(mesh_comm), mesh_(plan.mesh) {
  for (int server = 0; server < plan.num_dedicated; ++server) servers_.push_back(server);
  const int pool_ranks = plan.pool().num_ranks();
  order_.resize(static_cast<size_t>(kOrderHeader + kLoadValues * pool_ranks));
  report_.resize(kReportValues);
  reports_.resize(static_cast<size_t>(kReportValues * plan.num_dedicated * mesh_.tp));
}

absl::StatusOr<std::unique_ptr<ServerLine>> ServerLine::Create(Communicator& world,
                                                               Communicator* mesh_comm,
                                                               const ParallelPlan& plan,
                                                               double lost_after_s) {
  std::unique_ptr<ServerLine> line(new ServerLine(world, mesh_comm, plan));
  line->lost_after_s_ = lost_after_s;
  EK_RETURN_IF_ERROR(AgreeOnString(world, LauncherOutlivesRanks() ? "yes" : "no",
                                   "whether mpirun outlives lost ranks"));
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> group, world.Split(0, world.rank(), "servers"));
  line->groups_.push_back(std::move(group));
  if (!LauncherOutlivesRanks()) return line;
  LivenessOptions options;
  options.heartbeat_s = std::min(kHeartbeatSeconds, lost_after_s / 4);
  options.patience_s = lost_after_s;
  options.on_loss = [self = line.get()](int rank, const std::string& who) {
    self->OnLoss(rank, who);
  };
  EK_ASSIGN_OR_RETURN(line->liveness_, Liveness::Create(world, options));
  line->groups_.back()->SetInterrupt([line = line.get()] { return line->misses_server(); });
  return line;
}

void ServerLine::Watch(Communicator& device_world, MeshComms& mesh) const {
  if (liveness_ == nullptr) return;
  const auto is_lost = [liveness = liveness_.get(), known = num_dealt_with_] {
    return liveness->num_lost() > known;
  };
  mesh.SetPoolInterrupt(is_lost);
  if (num_dealt_with_ == 0) device_world.SetInterrupt(is_lost);
}

bool ServerLine::misses_server() const {
  return liveness_ != nullptr && liveness_->num_lost() > num_dealt_with_;
}

// On the thread that found out.
void ServerLine::OnLoss(int rank, const std::string& who) {
  const bool has_weights = rank < num_mesh_ranks();
  if (!has_weights && !is_joining_) return;
  // Every rank is told, and leaves by itself; one of them says why.
  if (world_.rank() == (rank == 0 ? 1 : 0)) {
    LogError(absl::StrCat(
        who, " is gone",
        has_weights ? ", and its part of the model with it"
                    : ", while the others made a new pool because of another attention server",
        "; the same command goes on from the last checkpoint"));
  }
  RecordExitCode(ExitCode::kPeersLost);
  std::_Exit(static_cast<int>(ExitCode::kPeersLost));
}

std::vector<int> ServerLine::ServerRanks() const {
  std::vector<int> ranks;
  for (const int server : servers_) {
    for (int place = 0; place < mesh_.tp; ++place) {
      ranks.push_back(num_mesh_ranks() + server * mesh_.tp + place);
    }
  }
  return ranks;
}

absl::Status ServerLine::Order(const ServerOrder& order) {
  if (mesh_comm_->rank() != 0) return absl::OkStatus();
  std::fill(order_.begin(), order_.end(), 0.0);
  order_[0] = static_cast<double>(order.work);
  order_[1] = static_cast<double>(order.step);
  order_[2] = static_cast<double>(order.round);
  order_[3] = static_cast<double>(order.loads.size());
  for (size_t i = 0; i < order.loads.size(); ++i) {
    double* const numbers = &order_[kOrderHeader + kLoadValues * i];
    std::copy_n(order.loads[i].planned, 2, numbers);
    std::copy_n(order.loads[i].seconds, 2, numbers + 2);
  }
  std::vector<SendTo> sends;
  // Ranks of the first group are those of the world; in later ones servers follow the mesh.
  const std::vector<int> ranks = ServerRanks();
  for (size_t i = 0; i < ranks.size(); ++i) {
    sends.push_back({num_mesh_ranks() + static_cast<int>(i), ViewOf(order_)});
  }
  const absl::Status status = groups_.back()->SendRecv(sends, {}, "order to attention servers");
  // The pass will show it.
  return groups_.back()->is_interrupted() ? absl::OkStatus() : status;
}

absl::StatusOr<ServerOrder> ServerLine::NextOrder() {
  const ReceiveFrom receive{0, ViewOf(order_)};
  Work work = groups_.back()->SendRecvAsync({}, {&receive, 1}, "order to attention servers");
  // A checkpoint may take longer than any message; where ranks are gone the job
  // ends, or says so.
  absl::Status status = work.Wait();
  while (absl::IsDeadlineExceeded(status)) status = work.Wait();
  EK_RETURN_IF_ERROR(status);
  ServerOrder order;
  order.work = static_cast<PoolWork>(order_[0]);
  order.step = static_cast<int64_t>(order_[1]);
  order.round = static_cast<int64_t>(order_[2]);
  order.loads.resize(static_cast<size_t>(order_[3]));
  for (size_t i = 0; i < order.loads.size(); ++i) {
    const double* const numbers = &order_[kOrderHeader + kLoadValues * i];
    std::copy_n(numbers, 2, order.loads[i].planned);
    std::copy_n(numbers + 2, 2, order.loads[i].seconds);
  }
  return order;
}

absl::Status ServerLine::Report(const RankLoad& mine) {
  ToNumbers(mine, report_.data());
  const SendTo send{0, ViewOf(report_)};
  const absl::Status status = groups_.back()->SendRecv({&send, 1}, {}, "load of a server");
  return groups_.back()->is_interrupted() ? absl::OkStatus() : status;
}

absl::StatusOr<PoolLoads> ServerLine::Collect(const RankLoad& mine, bool is_interrupted,
                                              bool* is_whole) {
  const std::vector<int> ranks = ServerRanks();
  if (mesh_comm_->rank() == 0) {
    std::vector<ReceiveFrom> receives;
    for (size_t i = 0; i < ranks.size(); ++i) {
      receives.push_back({num_mesh_ranks() + static_cast<int>(i),
                          TensorView(&reports_[kReportValues * i], DType::kF64, {kReportValues})});
    }
    Communicator& group = *groups_.back();
    const absl::Status status = group.SendRecv({}, receives, "load of a server");
    is_interrupted = is_interrupted || group.is_interrupted();
    if (!is_interrupted) EK_RETURN_IF_ERROR(status);
  }
  constexpr int kValues = kReportValues + 1;
  std::vector<double> row(kValues);
  ToNumbers(mine, row.data());
  row[kReportValues] = is_interrupted ? 1 : 0;
  const int size = mesh_comm_->size();
  std::vector<double> all(static_cast<size_t>(kValues * size));
  EK_RETURN_IF_ERROR(mesh_comm_->AllGather(TensorView(row.data(), DType::kF64, {1, kValues}),
                                           TensorView(all.data(), DType::kF64, {size, kValues}),
                                           "loads, and whether a server is missed"));
  std::vector<double> servers(reports_);
  EK_RETURN_IF_ERROR(mesh_comm_->Broadcast(ViewOf(servers), 0, "loads of attention servers"));
  PoolLoads pool;
  const auto owners = static_cast<size_t>(size / mesh_.tp);
  pool.loads.resize(owners + servers_.size());
  *is_whole = true;
  for (int rank = 0; rank < size; ++rank) {
    const double* const numbers = &all[static_cast<size_t>(kValues * rank)];
    AddLoad(numbers, pool.loads[static_cast<size_t>(rank / mesh_.tp)], pool);
    if (numbers[kReportValues] != 0) *is_whole = false;
  }
  for (size_t i = 0; i < ranks.size(); ++i) {
    AddLoad(&servers[kReportValues * i], pool.loads[owners + i / static_cast<size_t>(mesh_.tp)],
            pool);
  }
  return pool;
}

std::string ServerLine::Remove(const std::vector<int>& lost) {
  std::vector<std::string> who;
  for (const int rank : lost) {
    who.push_back(liveness_->Describe(rank));
    const int server = (rank - num_mesh_ranks()) / mesh_.tp;
    servers_.erase(std::remove(servers_.begin(), servers_.end(), server), servers_.end());
  }
  return absl::StrJoin(who, ", ");
}

absl::Status ServerLine::Join(int num_lost, Communicator& device_world, MeshComms& mesh) {
  // A loss from here on that is not among these would leave ranks waiting for each other.
  is_joining_ = true;
  num_dealt_with_ = num_lost;
  const std::vector<int> lost = liveness_->lost();
  if (static_cast<int>(lost.size()) > num_lost)
    OnLoss(lost.back(), liveness_->Describe(lost.back()));
  std::vector<int> ranks;
  for (int rank = 0; rank < num_mesh_ranks(); ++rank) ranks.push_back(rank);
  for (const int rank : ServerRanks()) ranks.push_back(rank);
  EK_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> group, world_.MakeGroup(ranks, "servers"));
  groups_.push_back(std::move(group));
  EK_RETURN_IF_ERROR(mesh.RemakePool(device_world, servers_));
  Watch(device_world, mesh);
  groups_.back()->SetInterrupt([this] { return misses_server(); });
  is_joining_ = false;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ServerLine::Regroup(Communicator& device_world, MeshComms& mesh) {
  if (liveness_ == nullptr) return absl::InternalError("nobody looks for lost servers");
  // Those lost, and their number, as rank 0 knows them.
  std::vector<int64_t> lost(static_cast<size_t>(world_.size()) + 1);
  if (mesh_comm_->rank() == 0) {
    // A message that failed may be heard of before the rank that is silent.
    bool is_news = liveness_->AwaitLoss(num_dealt_with_, lost_after_s_ + 4 * kHeartbeatSeconds);
    // The ranks of a host are lost together, nearly.
    while (is_news) {
      is_news = liveness_->AwaitLoss(liveness_->num_lost(), kHeartbeatSeconds);
    }
    const std::vector<int> known = liveness_->lost();
    lost[0] = static_cast<int64_t>(known.size());
    std::copy(known.begin(), known.end(), lost.begin() + 1);
  }
  EK_RETURN_IF_ERROR(mesh_comm_->Broadcast(
      TensorView(lost.data(), DType::kI64, {static_cast<int64_t>(lost.size())}), 0, "lost ranks"));
  const auto num_lost = static_cast<int>(lost[0]);
  if (num_lost == num_dealt_with_) {
    return absl::UnavailableError(
        "messages to attention servers have failed, but every rank answers heartbeats");
  }
  const std::string who = Remove({lost.begin() + 1 + num_dealt_with_, lost.begin() + 1 + num_lost});
  if (mesh_comm_->rank() == 0) liveness_->Announce(num_lost);
  if (!servers_.empty()) EK_RETURN_IF_ERROR(Join(num_lost, device_world, mesh));
  num_dealt_with_ = num_lost;
  return who;
}

absl::StatusOr<bool> ServerLine::Rejoin(Communicator& device_world, MeshComms& mesh) {
  EK_ASSIGN_OR_RETURN(const int num_lost, liveness_->AwaitAnnouncement(++num_announced_));
  std::vector<int> lost = liveness_->lost();
  lost.resize(static_cast<size_t>(num_lost));
  lost.erase(lost.begin(), lost.begin() + num_dealt_with_);
  (void)Remove(lost);
  const int server = (world_.rank() - num_mesh_ranks()) / mesh_.tp;
  if (std::find(servers_.begin(), servers_.end(), server) == servers_.end()) return false;
  EK_RETURN_IF_ERROR(Join(num_lost, device_world, mesh));
  return true;
}

}  // namespace evenkeel
