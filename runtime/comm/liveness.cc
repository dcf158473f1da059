#include "runtime/comm/liveness.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/log.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/agreement.h"
#include "runtime/comm/status_board.h"

namespace evenkeel {
namespace {

constexpr char kHeartbeat = 'h';
constexpr char kGoodbye = 'b';
constexpr int32_t kLost = 1;
constexpr int32_t kAnnounced = 2;
constexpr double kConnectSeconds = 10;  // for one address
constexpr double kSendSeconds = 1;

struct Hello {
  uint64_t token;
  int64_t rank;
};

int64_t Nanoseconds(double seconds) {
  return static_cast<int64_t>(seconds * 1e9);
}

// Field 22 of /proc/PID/stat; 0 if there is no such process.
int64_t StartTime(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string text;
  std::getline(file, text);  // fails quietly for a process that ends meanwhile
  // The command's name, in parentheses, may hold anything.
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string word;
  for (int field = 3; field <= 22; ++field) fields >> word;
  int64_t ticks = 0;
  return absl::SimpleAtoi(word, &ticks) ? ticks : 0;
}

std::string HostName() {
  std::array<char, 256> name = {};
  (void)gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Liveness>> Liveness::Create(Communicator& world,
                                                           const LivenessOptions& options) {
  // host pid start, and of rank 0 also: port token address...
  std::vector<std::string> words = {HostName(), absl::StrCat(getpid()),
                                    absl::StrCat(StartTime(getpid()))};
  TcpSocket listener;
  absl::Status status;
  if (world.rank() == 0) {
    int port = 0;
    if (auto socket = ListenOnTcp(&port); socket.ok()) {
      listener = *std::move(socket);
    } else {
      status = socket.status();
    }
    std::random_device random;
    words.push_back(absl::StrCat(port));
    words.push_back(absl::StrCat((uint64_t{random()} << 32) | random()));
    for (std::string& address : HostAddresses()) words.push_back(std::move(address));
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(world, status, "listening for heartbeats"));
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                      AllGatherStrings(world, absl::StrJoin(words, " "), "who is where"));
  std::vector<Process> processes;
  for (const std::string& text : texts) {
    const std::vector<std::string> parts = absl::StrSplit(text, ' ');
    Process process{parts[0]};
    if (!absl::SimpleAtoi(parts[1], &process.pid) ||
        !absl::SimpleAtoi(parts[2], &process.start_time)) {
      status = absl::InternalError(absl::StrCat("not a process: ", text));
    }
    processes.push_back(std::move(process));
  }
  std::vector<std::string> parts = absl::StrSplit(texts[0], ' ');
  int port = 0;
  uint64_t token = 0;
  if (!absl::SimpleAtoi(parts[3], &port) || !absl::SimpleAtoi(parts[4], &token)) {
    status = absl::InternalError(absl::StrCat("not an address: ", texts[0]));
  }
  parts.erase(parts.begin(), parts.begin() + 5);
  std::unique_ptr<Liveness> liveness(new Liveness(world, options, std::move(processes)));
  if (status.ok()) {
    status = world.rank() == 0 ? liveness->AcceptRanks(listener, token)
                               : liveness->ConnectToRank0(parts, port, token);
  }
  EK_RETURN_IF_ERROR(AgreeOnStatus(world, status, "connecting heartbeats"));
  // MPI's TCP writes to sockets whose other end may be gone, which by default ends the writer too.
  (void)signal(SIGPIPE, SIG_IGN);
  Liveness* const self = liveness.get();
  liveness->thread_ = world.rank() == 0 ? std::thread([self] { self->RunRank0(); })
                                        : std::thread([self] { self->RunOther(); });
  return liveness;
}

absl::Status Liveness::ConnectToRank0(const std::vector<std::string>& addresses, int port,
                                      uint64_t token) {
  absl::Status last;
  for (const std::string& address : addresses) {
    auto socket = ConnectTcp(address, port, kConnectSeconds);
    if (!socket.ok()) {
      last = socket.status();
      continue;
    }
    // What listens at this address may be something else: its answer shows.
    const Hello hello{token, rank_};
    uint64_t answer = 0;
    last = socket->Send(&hello, sizeof(hello), kConnectSeconds);
    if (last.ok()) last = socket->Receive(&answer, sizeof(answer), kConnectSeconds);
    if (!last.ok() || answer != ~token) continue;
    to_rank0_ = *std::move(socket);
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat(Describe(rank_), " can not reach rank 0 on host ", processes_[0].host,
                   " by TCP, at ", absl::StrJoin(addresses, ", "), " port ", port, ": ",
                   last.ok() ? "something else answers there" : last.message()));
}

absl::Status Liveness::AcceptRanks(const TcpSocket& listener, uint64_t token) {
  peers_.resize(processes_.size());
  size_t num_missing = processes_.size() - 1;
  // Others try several addresses in turn.
  const int64_t deadline = MonotonicNanoseconds() + Nanoseconds(6 * kConnectSeconds);
  while (num_missing > 0) {
    pollfd entry = {listener.fd(), POLLIN, 0};
    if (poll(&entry, 1, 100) <= 0) {
      if (MonotonicNanoseconds() < deadline) continue;
      return absl::DeadlineExceededError(
          absl::StrCat(num_missing, " ranks do not connect to rank 0 by TCP"));
    }
    auto socket = AcceptTcp(listener);
    Hello hello = {};
    if (!socket.ok() || !socket->Receive(&hello, sizeof(hello), kSendSeconds).ok()) continue;
    const auto place = static_cast<size_t>(hello.rank);
    if (hello.token != token || place >= peers_.size() || peers_[place].socket.is_open()) continue;
    const uint64_t answer = ~token;
    if (!socket->Send(&answer, sizeof(answer), kSendSeconds).ok()) continue;
    peers_[place].socket = *std::move(socket);
    --num_missing;
  }
  for (Peer& peer : peers_) peer.heard_ns = MonotonicNanoseconds();
  return absl::OkStatus();
}

Liveness::~Liveness() {
  must_stop_ = true;
  if (thread_.joinable()) thread_.join();
  if (rank_ != 0) (void)to_rank0_.Send(&kGoodbye, 1, kSendSeconds);
  // Rank 0 closes its end, on which the others, should they still listen, see it leave.
  const std::lock_guard<std::mutex> lock(send_mutex_);
  for (Peer& peer : peers_) {
    const Notice goodbye{0, 0};
    if (!peer.has_left && peer.socket.is_open()) {
      (void)peer.socket.Send(&goodbye, sizeof(goodbye), kSendSeconds);
    }
  }
}

void Liveness::RunRank0() {
  const int64_t period = Nanoseconds(options_.heartbeat_s);
  int64_t last = MonotonicNanoseconds();
  while (!must_stop_) {
    std::vector<pollfd> entries;
    std::vector<int> ranks;
    for (size_t r = 0; r < peers_.size(); ++r) {
      if (peers_[r].has_left || !peers_[r].socket.is_open()) continue;
      entries.push_back({peers_[r].socket.fd(), POLLIN, 0});
      ranks.push_back(static_cast<int>(r));
    }
    (void)poll(entries.data(), entries.size(), static_cast<int>(period / 4000000));
    const int64_t now = MonotonicNanoseconds();
    // Having been stopped itself, rank 0 does not know who was silent meanwhile.
    if (now - last > 2 * period) {
      for (Peer& peer : peers_) peer.heard_ns = now;
    }
    last = now;
    for (size_t i = 0; i < entries.size(); ++i) {
      Peer& peer = peers_[static_cast<size_t>(ranks[i])];
      bool is_lost = false;
      if (entries[i].revents != 0) {
        std::array<char, 64> bytes = {};
        const ssize_t got = recv(peer.socket.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        if (got > 0) {
          peer.heard_ns = now;
          if (std::find(bytes.begin(), bytes.begin() + got, kGoodbye) != bytes.begin() + got) {
            const std::lock_guard<std::mutex> lock(send_mutex_);
            peer.has_left = true;
          }
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
          is_lost = true;
        }
      }
      if (now - peer.heard_ns > Nanoseconds(options_.patience_s)) is_lost = true;
      if (!is_lost || peer.has_left) continue;
      // To the lost one too, should it only be silent; and first, as on_loss may end this process.
      Broadcast({kLost, ranks[i]});
      {
        const std::lock_guard<std::mutex> lock(send_mutex_);
        peer.has_left = true;
      }
      NoteLoss(ranks[i]);
    }
  }
}

void Liveness::Broadcast(Notice notice) {
  const std::lock_guard<std::mutex> lock(send_mutex_);
  for (const Peer& peer : peers_) {
    if (peer.has_left || !peer.socket.is_open()) continue;
    // Whom it does not reach will be found silent.
    (void)peer.socket.Send(&notice, sizeof(notice), kSendSeconds);
  }
}

void Liveness::RunOther() {
  const int64_t period = Nanoseconds(options_.heartbeat_s);
  int64_t sent = 0;
  bool hears_rank0 = true;
  while (!must_stop_) {
    const int64_t now = MonotonicNanoseconds();
    if (now - sent >= period) {
      (void)to_rank0_.Send(&kHeartbeat, 1, kSendSeconds);
      sent = now;
    }
    pollfd entry = {hears_rank0 ? to_rank0_.fd() : -1, POLLIN, 0};
    if (poll(&entry, 1, static_cast<int>(period / 4000000)) <= 0) continue;
    Notice notice = {};
    if (!to_rank0_.Receive(&notice, sizeof(notice), kSendSeconds).ok()) {
      hears_rank0 = false;
      NoteLoss(0);
    } else if (notice.kind == kLost) {
      NoteLoss(notice.value);
    } else if (notice.kind == kAnnounced) {
      const std::lock_guard<std::mutex> lock(mutex_);
      announced_.push_back(notice.value);
      news_.notify_all();
    } else {
      hears_rank0 = false;  // it has left
    }
  }
}

void Liveness::NoteLoss(int rank) {
  if (rank == rank_) {
    LogError(absl::StrCat(Describe(rank), " was silent for more than ", options_.patience_s,
                          " s and counts as lost: it leaves"));
    std::_Exit(static_cast<int>(ExitCode::kPeersLost));
  }
  world_.NoteLostRanks();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    lost_.push_back(rank);
    num_lost_.store(static_cast<int>(lost_.size()), std::memory_order_release);
    news_.notify_all();
  }
  Fence(rank);
  if (options_.on_loss != nullptr) options_.on_loss(rank, Describe(rank));
}

void Liveness::Fence(int lost_rank) {
  const Process& process = processes_[static_cast<size_t>(lost_rank)];
  const std::vector<int> gone = lost();
  for (int r = 0; r < rank_; ++r) {
    const bool is_here = processes_[static_cast<size_t>(r)].host == process.host &&
                         std::find(gone.begin(), gone.end(), r) == gone.end();
    if (is_here) return;
  }
  if (processes_[static_cast<size_t>(rank_)].host != process.host) return;
  // By its start time too, for a host name may be that of several containers.
  if (process.start_time != 0 && StartTime(process.pid) == process.start_time) {
    (void)kill(process.pid, SIGKILL);
  }
}

std::vector<int> Liveness::lost() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return lost_;
}

bool Liveness::AwaitLoss(int known, double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return news_.wait_for(lock, std::chrono::duration<double>(seconds),
                        [&] { return static_cast<int>(lost_.size()) > known; });
}

void Liveness::Announce(int num_lost) {
  Broadcast({kAnnounced, num_lost});
}

absl::StatusOr<int> Liveness::AwaitAnnouncement(int number) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto has_come = [&] { return static_cast<int>(announced_.size()) >= number; };
  news_.wait(lock,
             [&] { return has_come() || std::find(lost_.begin(), lost_.end(), 0) != lost_.end(); });
  if (has_come()) return announced_[static_cast<size_t>(number - 1)];
  return absl::UnavailableError(absl::StrCat(Describe(0), " is gone"));
}

std::string Liveness::Describe(int rank) const {
  const Process& process = processes_[static_cast<size_t>(rank)];
  return absl::StrCat("rank ", rank, " (host ", process.host, ", pid ", process.pid, ")");
}

}  // namespace evenkeel
