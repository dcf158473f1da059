// Ranks that come late, are stopped, or make other calls than the rest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

constexpr double kTimeout = 0.3;

TensorView View(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

void Sleep(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

class Timeout : public testing::Test {
 protected:
  Timeout() : runtime_(*MpiRuntime::Create({.timeout_s = kTimeout})), comm_(runtime_.world()) {}

  // Waits past time-outs, so that no call is left unfinished.
  static absl::Status WaitOn(Work& work) {
    absl::Status status;
    for (int i = 0; i < 100 && !work.Test(); ++i) status = work.Wait();
    return work.Wait();
  }

  MpiRuntime runtime_;
  Communicator& comm_;
};

TEST_F(Timeout, NamesTheRankThatIsLate) {
  if (comm_.size() < 2) GTEST_SKIP() << "needs two ranks";
  comm_.SetStep(17);
  std::vector<float> values(1000, 1.f);
  ASSERT_TRUE(comm_.AllReduce(View(values), ReduceOp::kSum, "bucket 2").ok());
  if (comm_.rank() == 1) Sleep(3 * kTimeout);
  Work work = comm_.AllReduceAsync(View(values), ReduceOp::kSum, "bucket 3");
  if (comm_.rank() != 1) {
    const auto begin = std::chrono::steady_clock::now();
    const absl::Status status = work.Wait();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    const std::string message(status.message());
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kTimeout);
    EXPECT_LT(took.count(), kTimeout + 0.5);
    EXPECT_THAT(message, HasSubstr("AllReduce \"bucket 3\" on world timed out"));
    EXPECT_THAT(message, HasSubstr(absl::StrCat("on rank ", comm_.rank(), " of ", comm_.size(),
                                                " (host ", runtime_.host())));
    EXPECT_THAT(message, HasSubstr("at step 17, call number 2, 1000 x f32"));
    EXPECT_THAT(message, HasSubstr("It has not arrived: rank 1\n  rank 1: pid "));
    EXPECT_THAT(message, HasSubstr("its last call here was #1 AllReduce \"bucket 2\" (1000 x f32) "
                                   "at step 17"));
    EXPECT_THAT(message, HasSubstr("it is not in a call"));
  }
  // The late rank comes after all, and the call completes on every rank.
  EXPECT_TRUE(WaitOn(work).ok());
  EXPECT_EQ(values[999], static_cast<float>(comm_.size() * comm_.size()));
}

TEST_F(Timeout, NamesTheRankThatIsStopped) {
  if (comm_.size() < 2) GTEST_SKIP() << "needs two ranks";
  std::vector<int64_t> pids(static_cast<size_t>(comm_.size()));
  int64_t pid = getpid();
  ASSERT_TRUE(comm_
                  .AllGather(ConstTensorView(&pid, DType::kI64, {1}),
                             TensorView(pids.data(), DType::kI64, {comm_.size()}), "pids")
                  .ok());
  const int last = comm_.size() - 1;
  std::vector<float> values(1000, 1.f);
  if (comm_.rank() == last) Sleep(1);  // not in a call when it is stopped
  if (comm_.rank() == 0) {
    Sleep(0.1);
    ASSERT_EQ(kill(static_cast<pid_t>(pids.back()), SIGSTOP), 0);
  }
  Work work = comm_.AllReduceAsync(View(values), ReduceOp::kSum, "after the stop");
  if (comm_.rank() != last) {
    const absl::Status status = work.Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("not arrived: rank ", last)));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("pid ", pids.back(), " is stopped")));
  }
  if (comm_.rank() == 0) {
    Sleep(0.5);  // the other ranks report too
    ASSERT_EQ(kill(static_cast<pid_t>(pids.back()), SIGCONT), 0);
  }
  EXPECT_TRUE(WaitOn(work).ok());
}

TEST_F(Timeout, NamesTheSilentPeerOfAMessage) {
  if (comm_.size() < 2) GTEST_SKIP() << "needs two ranks";
  std::vector<float> values(7, 2.f);
  if (comm_.rank() == 0) {
    Work work = comm_.SendRecvAsync({}, {{1, View(values)}}, "keys of document 5");
    const absl::Status status = work.Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("SendRecv \"keys of document 5\" on world timed out"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("peers: rank 1\n  rank 1: pid "));
    EXPECT_TRUE(WaitOn(work).ok());
    EXPECT_EQ(values[6], 1.f);
  } else if (comm_.rank() == 1) {
    Sleep(3 * kTimeout);
    values.assign(7, 1.f);
    EXPECT_TRUE(comm_.SendRecv({{0, View(values)}}, {}, "keys of document 5").ok());
  }
}

// Leaves calls unfinished, as mismatches must: so in a runtime of its own, whose MPI is not its to
// finalise.
TEST(Mismatch, OfLabelsIsNamedOnBothSides) {
  MpiRuntime runtime = *MpiRuntime::Create({.timeout_s = 20});
  Communicator& comm = runtime.world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  std::vector<float> values(3, 1.f);
  ASSERT_TRUE(comm.AllReduce(View(values), ReduceOp::kSum, "same").ok());
  const absl::Status status =
      comm.AllReduce(View(values), ReduceOp::kSum, comm.rank() == 0 ? "loss" : "norm");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("ranks make different calls as number 2 on world"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("AllReduce \"loss\""));
  EXPECT_THAT(std::string(status.message()), HasSubstr("AllReduce \"norm\""));
  // And nothing goes on afterwards.
  EXPECT_THAT(std::string(comm.Barrier("after").message()),
              HasSubstr("an earlier call on world has failed"));
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(Mismatch, OfSizesAndKindsIsNamed) {
  MpiRuntime runtime = *MpiRuntime::Create({.timeout_s = 20});
  Communicator& comm = runtime.world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto sizes = *comm.Split(0, 0, "sizes");
  const auto kinds = *comm.Split(0, 0, "kinds");
  std::vector<float> values(comm.rank() == 0 ? 3 : 4, 1.f);
  const absl::Status size = sizes->AllReduce(View(values), ReduceOp::kSum, "x");
  EXPECT_THAT(std::string(size.message()),
              testing::AllOf(HasSubstr("(3 x f32)"), HasSubstr("(4 x f32)")));
  const absl::Status kind =
      comm.rank() == 0 ? kinds->Barrier("x") : kinds->AllReduce(View(values), ReduceOp::kSum, "x");
  EXPECT_THAT(std::string(kind.message()),
              testing::AllOf(HasSubstr("Barrier \"x\""), HasSubstr("AllReduce \"x\"")));
  MPI_Barrier(MPI_COMM_WORLD);
}

}  // namespace
}  // namespace evenkeel
