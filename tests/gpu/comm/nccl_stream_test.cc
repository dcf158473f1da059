// Calls and the compute stream: what waits for what.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/gpu/comm/nccl_fixture.h"

namespace evenkeel {
namespace {

using NcclStream = NcclTest;

void Sleep(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// Keeps the stream busy for 0.2 s.
void Delay(cudaStream_t stream) {
  ASSERT_EQ(cudaLaunchHostFunc(
                stream, [](void*) { Sleep(0.2); }, nullptr),
            cudaSuccess);
}

TEST_F(NcclStream, ManyCallsInFlightWaitedForInAnotherOrder) {
  std::vector<std::unique_ptr<TwinTensor<double>>> buckets;
  std::vector<Work> works;
  for (size_t i = 0; i < 60; ++i) {
    buckets.push_back(std::make_unique<TwinTensor<double>>(
        std::vector<double>(1 + 997 * i, static_cast<double>(i + 1))));
  }
  for (size_t i = 0; i < buckets.size(); ++i) {
    works.push_back(
        nccl().AllReduceAsync(buckets[i]->device(), ReduceOp::kSum, absl::StrCat("bucket ", i)));
  }
  for (size_t i = works.size(); i-- > 0;) {
    if (i % 3 == 0) {
      works[i] = Work();  // nobody waits for it: dropping it does
    } else {
      EXPECT_TRUE(works[i].Wait().ok());
      EXPECT_TRUE(works[i].Wait().ok()) << "waiting again gives the same outcome";
    }
  }
  Synchronize();
  for (size_t i = 0; i < buckets.size(); ++i) {
    EXPECT_TRUE(works[i].Test());
    EXPECT_THAT(buckets[i]->Download(), testing::Each(static_cast<double>(i + 1) * size()));
  }
}

TEST_F(NcclStream, CallsSeeEarlierComputeAndLaterComputeSeesTheResult) {
  constexpr size_t kSize = 100000;
  constexpr size_t kBytes = kSize * sizeof(int32_t);
  const TwinTensor<int32_t> good(std::vector<int32_t>(kSize, rank() + 1));
  const TwinTensor<int32_t> data(std::vector<int32_t>(kSize, -1000));
  const TwinTensor<int32_t> copy(std::vector<int32_t>(kSize, 0));
  // The input comes late on all ranks, and then the call itself on the last.
  for (const bool is_call_late : {false, true}) {
    ASSERT_EQ(cudaMemsetAsync(data.device().data, 0xff, kBytes, stream()), cudaSuccess);
    ASSERT_EQ(cudaMemsetAsync(copy.device().data, 0, kBytes, stream()), cudaSuccess);
    if (!is_call_late) Delay(stream());
    ASSERT_EQ(cudaMemcpyAsync(data.device().data, good.device().data, kBytes,
                              cudaMemcpyDeviceToDevice, stream()),
              cudaSuccess);
    if (is_call_late && rank() == size() - 1) Sleep(0.2);
    ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "ordered").ok());
    ASSERT_EQ(cudaMemcpyAsync(copy.device().data, data.device().data, kBytes,
                              cudaMemcpyDeviceToDevice, stream()),
              cudaSuccess);
    Synchronize();
    EXPECT_THAT(copy.Download(), testing::Each(size() * (size() + 1) / 2)) << is_call_late;
  }
}

TEST_F(NcclStream, DroppingAWorkMakesTheStreamWait) {
  const TwinTensor<int32_t> data(std::vector<int32_t>(1000, 1));
  const TwinTensor<int32_t> copy(std::vector<int32_t>(1000, 0));
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kMax, "connect").ok());
  Synchronize();
  if (rank() == size() - 1) Sleep(0.2);
  { const Work work = nccl().AllReduceAsync(data.device(), ReduceOp::kSum, "dropped"); }
  ASSERT_EQ(cudaMemcpyAsync(copy.device().data, data.device().data, 4000, cudaMemcpyDeviceToDevice,
                            stream()),
            cudaSuccess);
  Synchronize();
  EXPECT_THAT(copy.Download(), testing::Each(size()));
}

TEST_F(NcclStream, TheHostGoesOnWhileTheStreamWaits) {
  const TwinTensor<float> data(std::vector<float>(1000, 1.f));
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "connect").ok());
  Synchronize();
  Delay(stream());
  const auto begin = std::chrono::steady_clock::now();
  Work work = nccl().AllReduceAsync(data.device(), ReduceOp::kSum, "behind the delay");
  EXPECT_FALSE(work.Test());
  EXPECT_TRUE(work.Wait().ok());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(took.count(), 0.15);
  Synchronize();
  EXPECT_TRUE(work.Test());
}

TEST_F(NcclStream, MeasuresHowLongTheComputeStreamStandsStill) {
  if (size() < 2) GTEST_SKIP() << "needs two ranks";
  const TwinTensor<float> data(std::vector<float>(1000, 1.f));
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "connect").ok());
  Synchronize();
  (void)runtime().TakeExposedSeconds();
  EXPECT_EQ(runtime().TakeExposedSeconds(), 0.0);
  // The last rank comes late, twice; the others wait for it on the device.
  for (int i = 0; i < 2; ++i) {
    if (rank() == size() - 1) Sleep(0.2);
    ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "late").ok());
  }
  Synchronize();
  const double exposed = runtime().TakeExposedSeconds();
  if (rank() != size() - 1) {
    EXPECT_GT(exposed, 0.3);
    EXPECT_LT(exposed, 5.0);
  }
  EXPECT_EQ(runtime().TakeExposedSeconds(), 0.0);
}

TEST_F(NcclStream, ATimelineHasTheCallsOfItsTime) {
  const TwinTensor<float> data(std::vector<float>(1000, 1.f));
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "before").ok());
  ASSERT_TRUE(runtime().StartTrace().ok());
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "first").ok());
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "second").ok());
  Synchronize();
  const std::vector<TraceEvent> events = runtime().TakeTrace();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_NE(events[0].name.find("first"), std::string::npos) << events[0].name;
  EXPECT_NE(events[1].name.find("second"), std::string::npos) << events[1].name;
  EXPECT_GT(events[0].duration_us, 0);
  EXPECT_GE(events[1].start_us, events[0].start_us + events[0].duration_us);
  EXPECT_TRUE(runtime().TakeTrace().empty());
  runtime().StopTrace();
  ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "after").ok());
  Synchronize();
  EXPECT_TRUE(runtime().TakeTrace().empty());
}

TEST_F(NcclStream, CommunicatorsDoNotWaitForEachOther) {
  // The ranks make two calls in opposite orders, which on one stream would never end.
  auto one = nccl().Split(0, 0, "one"), two = nccl().Split(0, 0, "two");
  ASSERT_TRUE(one.ok() && two.ok());
  const TwinTensor<float> a(std::vector<float>(1000, 1.f)), b(std::vector<float>(1000, 2.f));
  for (const auto& comm : {one->get(), two->get()}) {  // connect
    ASSERT_TRUE(comm->AllReduce(a.device(), ReduceOp::kMax, "connect").ok());
  }
  Synchronize();
  Work first, second;
  if (rank() % 2 == 0) first = (*one)->AllReduceAsync(a.device(), ReduceOp::kSum, "a");
  second = (*two)->AllReduceAsync(b.device(), ReduceOp::kSum, "b");
  if (rank() % 2 != 0) first = (*one)->AllReduceAsync(a.device(), ReduceOp::kSum, "a");
  EXPECT_TRUE(first.Wait().ok());
  EXPECT_TRUE(second.Wait().ok());
  Synchronize();
  EXPECT_THAT(a.Download(), testing::Each(static_cast<float>(size())));
  EXPECT_THAT(b.Download(), testing::Each(2.f * static_cast<float>(size())));
}

}  // namespace
}  // namespace evenkeel
