// Ranks die or are stopped in the middle of messages; the others find out, end their calls, and go
// on in a group of their own. A program of its own: mpirun has to let survivors live
// (--enable-recovery), and then says of any failure that it is none, so what counts is the last
// line that rank 0 prints.
//
//   mpirun --enable-recovery -np 5 lost_rank_test kill|stop|idle
#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/comm/liveness.h"
#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr double kPatience = 2;

// Messages of every size from every rank of the group to every other, all at once, so that some
// have begun and some have not when a rank is lost.
struct Exchange {
  explicit Exchange(int ranks) : out(Rows(ranks)), in(Rows(ranks)) {}

  static std::vector<std::vector<float>> Rows(int ranks) {
    std::vector<std::vector<float>> rows;
    for (int r = 0; r < ranks; ++r) {
      for (const int64_t size : {0, 10, 5000, 3000000}) {
        rows.emplace_back(static_cast<size_t>(size));
      }
    }
    return rows;
  }

  Work Start(Communicator& comm, float value) {
    std::vector<SendTo> sends;
    std::vector<ReceiveFrom> receives;
    for (size_t i = 0; i < out.size(); ++i) {
      const int peer = static_cast<int>(i / 4);
      if (peer == comm.rank()) continue;
      for (float& x : out[i]) x = value + static_cast<float>(comm.rank());
      const auto size = static_cast<int64_t>(out[i].size());
      sends.push_back({peer, TensorView(out[i].data(), DType::kF32, {size})});
      receives.push_back({peer, TensorView(in[i].data(), DType::kF32, {size})});
    }
    return comm.SendRecvAsync(sends, receives, "everything to everybody");
  }

  void Check(Communicator& comm, float value) const {
    for (size_t i = 0; i < in.size(); ++i) {
      const int peer = static_cast<int>(i / 4);
      if (peer == comm.rank()) continue;
      for (const float x : in[i]) EK_CHECK(x == value + static_cast<float>(peer)) << x;
    }
  }

  std::vector<std::vector<float>> out, in;
};

[[noreturn]] void Leave(const std::string& how) {
  (void)raise(how == "kill" ? SIGKILL : SIGSTOP);
  // A stopped rank is killed by another one of its host.
  std::this_thread::sleep_for(std::chrono::seconds(1));
  std::printf("a lost rank went on\n");
  std::abort();
}

// A rank is lost while nobody waits for it: what ends with all ranks must not wait for it either.
void RunIdle() {
  MpiRuntime mpi = *MpiRuntime::Create({.timeout_s = 60});
  auto liveness = Liveness::Create(mpi.world(), {.heartbeat_s = 0.2, .patience_s = kPatience});
  EK_CHECK(liveness.ok()) << liveness.status();
  if (mpi.world().rank() + 1 == mpi.world().size()) Leave("kill");
  EK_CHECK((*liveness)->AwaitLoss(0, 20)) << "nobody is missed";
  if (mpi.world().rank() == 0) std::printf("survivors passed\n");
}

void Run(const std::string& how) {
  MpiRuntime mpi = *MpiRuntime::Create({.timeout_s = 60});
  Communicator& world = mpi.world();
  auto liveness = Liveness::Create(world, {.heartbeat_s = 0.2, .patience_s = kPatience});
  EK_CHECK(liveness.ok()) << liveness.status();
  std::vector<int> live;
  for (int r = 0; r < world.size(); ++r) live.push_back(r);
  std::unique_ptr<Communicator> group = *world.MakeGroup(live, "group");
  // The last rank is lost, then the one before it.
  for (int losses = 0; losses < 2; ++losses) {
    group->SetInterrupt([&liveness = **liveness, losses] { return liveness.num_lost() > losses; });
    for (int round = 0; round < 3; ++round) {
      Exchange exchange(group->size());
      const auto value = static_cast<float>(100 * losses + 10 * round);
      Work work = exchange.Start(*group, value);
      EK_CHECK(work.Wait().ok()) << "round " << round;
      exchange.Check(*group, value);
    }
    // Long enough for the test to see memory that is written when nobody waits any more.
    Exchange broken(group->size()), again(group->size());
    const bool is_victim = group->rank() + 1 == group->size();
    const double begin = Now();
    Work work = broken.Start(*group, 7);
    if (is_victim) Leave(how);
    const absl::Status status = work.Wait();
    // The victim's messages may have been sent before it died, but rank 0 hears of it.
    EK_CHECK(status.ok() || absl::IsUnavailable(status)) << status;
    EK_CHECK((*liveness)->AwaitLoss(losses, 20)) << "nobody is missed";
    const double took = Now() - begin;
    EK_CHECK(took < (how == "kill" ? 1.5 : kPatience + 2)) << took << " s";
    EK_CHECK(group->is_interrupted()) << losses;
    Work late = again.Start(*group, 8);
    EK_CHECK(absl::IsUnavailable(late.Wait())) << "calls go on";
    // Rank 0 says with how many losses to go on.
    if (world.rank() == 0) (*liveness)->Announce((*liveness)->num_lost());
    const int lost =
        world.rank() == 0 ? (*liveness)->num_lost() : *(*liveness)->AwaitAnnouncement(losses + 1);
    EK_CHECK(lost == losses + 1 && (*liveness)->lost().back() == live.back()) << lost;
    live.pop_back();
    auto survivors = world.MakeGroup(live, "survivors");
    EK_CHECK(survivors.ok()) << survivors.status();
    const std::vector<std::vector<float>> kept = broken.in;
    for (int round = 0; round < 3; ++round) {
      Exchange exchange((*survivors)->size());
      Work next = exchange.Start(**survivors, 1000);
      EK_CHECK(next.Wait().ok()) << "among survivors";
      exchange.Check(**survivors, 1000);
    }
    // Nothing of the interrupted calls arrives any more.
    EK_CHECK(kept == broken.in) << "a message came late";
    group = *std::move(survivors);
  }
  if (world.rank() == 0) std::printf("survivors passed\n");
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string how = argv[1];
  if (how == "idle") {
    evenkeel::RunIdle();
  } else {
    evenkeel::Run(how);
  }
  return 0;
}
