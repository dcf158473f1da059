#include "runtime/comm/self_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/comm/agreement.h"

namespace evenkeel {
namespace {

TensorView View(std::vector<double>& values) {
  return TensorView(values.data(), DType::kF64, {static_cast<int64_t>(values.size())});
}

TEST(SelfCommunicator, CopiesWhatWouldTravel) {
  const auto comm = MakeSelfCommunicator();
  EXPECT_EQ(comm->rank(), 0);
  EXPECT_EQ(comm->size(), 1);
  std::vector<double> a = {1, 2, 3}, b(3), c(3), d(3), empty;
  EXPECT_TRUE(comm->AllReduce(View(a), ReduceOp::kSum, "a").ok());
  EXPECT_TRUE(comm->Broadcast(View(a), 0, "a").ok());
  EXPECT_THAT(a, testing::ElementsAre(1, 2, 3));
  EXPECT_TRUE(comm->AllGather(View(a), View(b), "b").ok());
  EXPECT_THAT(b, testing::ElementsAre(1, 2, 3));
  EXPECT_TRUE(comm->ReduceScatter(View(a), View(c), {3}, ReduceOp::kMax, "c").ok());
  EXPECT_THAT(c, testing::ElementsAre(1, 2, 3));
  EXPECT_TRUE(comm->AllToAll(View(a), {3}, View(d), {3}, "d").ok());
  EXPECT_THAT(d, testing::ElementsAre(1, 2, 3));
  EXPECT_TRUE(comm->AllGather(View(empty), View(empty), "nothing").ok());
  EXPECT_TRUE(comm->Barrier("end").ok());
}

TEST(SelfCommunicator, MessagesToItselfMatchInOrder) {
  const auto comm = MakeSelfCommunicator();
  std::vector<double> a = {1}, b = {2}, x(1), y(1);
  EXPECT_TRUE(comm->SendRecv({{0, View(a)}, {0, View(b)}}, {{0, View(x)}, {0, View(y)}}, "m").ok());
  EXPECT_EQ(x[0], 1);
  EXPECT_EQ(y[0], 2);
  EXPECT_FALSE(comm->SendRecv({{0, View(a)}}, {}, "m").ok());
}

TEST(SelfCommunicator, Splits) {
  const auto comm = MakeSelfCommunicator();
  const auto part = comm->Split(3, 0, "dp");
  ASSERT_TRUE(part.ok());
  EXPECT_EQ((*part)->name(), "dp");
  const auto none = comm->Split(-1, 0, "dp");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(*none, nullptr);
}

TEST(Agreement, OfOneRank) {
  const auto comm = MakeSelfCommunicator();
  EXPECT_TRUE(AgreeOnString(*comm, "abc", "config").ok());
  EXPECT_TRUE(AgreeOnStatus(*comm, absl::OkStatus(), "end").ok());
  const absl::Status failure = WithExitCode(absl::DataLossError("bad file"), ExitCode::kCheckpoint);
  const absl::Status agreed = AgreeOnStatus(*comm, failure, "end");
  EXPECT_EQ(agreed.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(agreed.message(), "bad file");
  EXPECT_EQ(ExitCodeOf(agreed), ExitCode::kCheckpoint);
  EXPECT_EQ(*BroadcastString(*comm, "hello", 0, "text"), "hello");
}

}  // namespace
}  // namespace evenkeel
