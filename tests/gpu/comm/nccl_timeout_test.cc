// Ranks that do not come. Every test has communicators of its own, which it leaves aborted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "tests/gpu/comm/nccl_fixture.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;

// Also of connecting the ranks, which takes several GPUs of a host some seconds.
constexpr double kTimeout = 6;

// What on_failure was told.
class Report {
 public:
  void Set(absl::Status status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++count_;
    status_ = std::move(status);
    told_.notify_all();
  }
  // OK if nothing was told within `seconds`.
  absl::Status Await(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    told_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return count_ > 0; });
    return status_;
  }
  int count() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable told_;
  absl::Status status_;
  int count_ = 0;
};

class NcclTimeout : public testing::Test {
 protected:
  void SetUp() override {
    ranks_ = NcclRanks::Create(kTimeout, [this](absl::Status s) { report_.Set(std::move(s)); });
    if (ranks_ == nullptr) GTEST_SKIP() << "no GPU";
  }

  // All ranks meet on the host.
  void Meet() { ASSERT_TRUE(ranks_->mpi.world().Barrier("meet").ok()); }

  // Expects the failure of call `label`, and that nothing hangs or works afterwards.
  void ExpectFailureOf(const std::string& label) {
    const auto begin = std::chrono::steady_clock::now();
    const absl::Status told = report_.Await(20);
    EXPECT_EQ(told.code(), absl::StatusCode::kDeadlineExceeded) << told;
    EXPECT_EQ(ExitCodeOf(told), ExitCode::kTimeout);
    Communicator& comm = ranks_->nccl.world();
    EXPECT_THAT(std::string(told.message()),
                HasSubstr(absl::StrCat("AllReduce \"", label,
                                       "\" (1024 x f32) on world timed out "
                                       "after 6.")));
    EXPECT_THAT(std::string(told.message()),
                HasSubstr(absl::StrCat("on rank ", comm.rank(), " of ", comm.size(), " (host ")));
    EXPECT_THAT(std::string(told.message()), HasSubstr("at step 17, call number "));
    EXPECT_THAT(std::string(told.message()),
                HasSubstr(". It has not arrived: rank 1\n  rank 1: pid "));
    EXPECT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(took.count(), kTimeout + 8);
    EXPECT_EQ(ranks_->nccl.status(), told);
    EXPECT_EQ(comm.Barrier("after"), told);
    EXPECT_EQ(comm.Split(0, 0, "after").status(), told);
    EXPECT_EQ(report_.count(), 1);
  }

  Report report_;  // first: told until the ranks are gone
  std::unique_ptr<NcclRanks> ranks_;
};

TEST_F(NcclTimeout, LongComputationBeforeACallDoesNotCount) {
  const TwinTensor<float> data(std::vector<float>(1024, 1.f));
  Communicator& comm = ranks_->nccl.world();
  ASSERT_TRUE(comm.AllReduce(data.device(), ReduceOp::kSum, "connect").ok());
  ASSERT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  Meet();
  ASSERT_EQ(
      cudaLaunchHostFunc(
          ranks_->stream,
          [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(8000)); }, nullptr),
      cudaSuccess);
  EXPECT_TRUE(comm.AllReduce(data.device(), ReduceOp::kSum, "after the computation").ok());
  ASSERT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  EXPECT_TRUE(ranks_->nccl.status().ok()) << ranks_->nccl.status();
  EXPECT_EQ(report_.count(), 0);
  EXPECT_EQ(data.Download()[1023], static_cast<float>(comm.size() * comm.size()));
}

TEST_F(NcclTimeout, NamesTheCallThatARankDoesNotJoin) {
  Communicator& comm = ranks_->nccl.world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  const TwinTensor<float> data(std::vector<float>(1024, 1.f)), more(std::vector<float>(10, 1.f));
  // Another communicator has work under way behind the call that hangs: both must be freed.
  auto part = comm.Split(0, 0, "part");
  ASSERT_TRUE(part.ok()) << part.status();
  comm.SetStep(16);
  ASSERT_TRUE(comm.AllReduce(data.device(), ReduceOp::kSum, "gradient bucket 2").ok());
  ASSERT_TRUE((*part)->AllReduce(more.device(), ReduceOp::kSum, "norm").ok());
  ASSERT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  Meet();
  comm.SetStep(17);
  if (comm.rank() != 1) {
    EXPECT_TRUE(comm.AllReduce(data.device(), ReduceOp::kSum, "gradient bucket 3").ok());
    EXPECT_TRUE((*part)->AllReduce(more.device(), ReduceOp::kSum, "norm").ok());
    ExpectFailureOf("gradient bucket 3");
  }
  Meet();
}

TEST_F(NcclTimeout, NamesTheFirstCallThatARankDoesNotJoin) {
  Communicator& comm = ranks_->nccl.world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  const TwinTensor<float> data(std::vector<float>(1024, 1.f));
  comm.SetStep(17);
  if (comm.rank() != 1) {
    // Sits in the connecting of the peers, or on the device if they were connected from the start.
    (void)comm.AllReduce(data.device(), ReduceOp::kSum, "first");
    ExpectFailureOf("first");
  }
  Meet();
}

TEST_F(NcclTimeout, FreesRanksThatWaitForCopiesOfAPeer) {
  if (ranks_->nccl.world().size() < 2) GTEST_SKIP() << "needs two ranks";
  auto part = ranks_->nccl.world().Split(0, ranks_->nccl.world().rank(), "peers");
  ASSERT_TRUE(part.ok()) << part.status();
  Communicator& comm = **part;
  const absl::StatusOr<bool> copies = comm.UsePeerCopies();
  ASSERT_TRUE(copies.ok()) << copies.status();
  if (!*copies) GTEST_SKIP() << "ranks do not reach each other's memory";
  constexpr int64_t kRows = 4096, kColumns = 64;
  const std::vector<int64_t> rows(static_cast<size_t>(comm.size()), kRows);
  const TwinTensor<float> mine(std::vector<float>(kRows * kColumns, 1.f), kColumns);
  const TwinTensor<float> all(
      std::vector<float>(static_cast<size_t>(comm.size() * kRows * kColumns), 0.f), kColumns);
  ASSERT_TRUE(comm.AllGather(mine.device(), all.device(), rows, "connect").ok());
  ASSERT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  Meet();
  if (comm.rank() != 1) {
    EXPECT_TRUE(comm.AllGather(mine.device(), all.device(), rows, "rows").ok());
  } else {  // must fail too, lest it wait for the others where it leaves the window
    (void)ranks_->nccl.world().AllReduce(mine.device(), ReduceOp::kSum, "alone");
  }
  const absl::Status told = report_.Await(20);
  EXPECT_EQ(told.code(), absl::StatusCode::kDeadlineExceeded) << told;
  if (comm.rank() != 1) {
    EXPECT_THAT(std::string(told.message()), HasSubstr("AllGather \"rows\""));
    EXPECT_THAT(std::string(told.message()), HasSubstr(". It has not arrived: rank 1\n"));
  }
  EXPECT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  Meet();
}

TEST_F(NcclTimeout, TellsRanksThatMakeDifferentCalls) {
  Communicator& comm = ranks_->nccl.world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  const TwinTensor<float> data(std::vector<float>(1024, 1.f));
  ASSERT_TRUE(comm.AllReduce(data.device(), ReduceOp::kSum, "connect").ok());
  ASSERT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  Meet();
  // Who comes last sees it at once; the others wait for a call that never begins.
  (void)comm.AllReduce(data.device(), ReduceOp::kSum, comm.rank() == 1 ? "norm" : "loss");
  const absl::Status told = report_.Await(20);
  int64_t num_told = 0;
  if (absl::IsFailedPrecondition(told)) {
    num_told = 1;
    EXPECT_THAT(std::string(told.message()),
                HasSubstr("ranks make different calls as number 2 on world"));
    EXPECT_THAT(std::string(told.message()), HasSubstr("AllReduce \"norm\" (1024 x f32)"));
  }
  EXPECT_EQ(cudaStreamSynchronize(ranks_->stream), cudaSuccess);
  ASSERT_TRUE(
      ranks_->mpi.world()
          .AllReduce(TensorView(&num_told, DType::kI64, {1}), ReduceOp::kSum, "who was told")
          .ok());
  EXPECT_GE(num_told, 1);
}

}  // namespace
}  // namespace evenkeel
