// Gradients are small integers, so that every sum is exact and equality is demanded.
#include "parallel/gradient_reducer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "runtime/base/philox.h"
#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

class GradientReduction : public testing::Test {
 protected:
  GradientReduction()
      : runtime_(*MpiRuntime::Create({.timeout_s = 20})),
        comm_(runtime_.world()),
        axis_(comm_, "data", log_) {}

  MpiRuntime runtime_;
  Communicator& comm_;
  CommLog log_;
  AxisComm axis_;
};

template <typename T>
T Gradient(int rank, int64_t step, int64_t i) {
  return static_cast<T>((i * 7 + step * 3) % 101 + 1000 * rank);
}

// Bounds of the ranges that are marked, descending from n to 0; the same on all ranks. Neighbours
// may be equal: an empty range.
std::vector<int64_t> RandomCuts(int64_t n, int count, uint64_t seed) {
  std::vector<int64_t> cuts = {n, 0};
  const Philox random(seed, 4);
  for (int i = 0; i < count; ++i) {
    cuts.push_back(
        static_cast<int64_t>(random.Bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(n + 1)));
  }
  std::sort(cuts.begin(), cuts.end(), std::greater<>());
  return cuts;
}

// A step as the backward pass does it: a range's gradients are written, then marked. What is not
// marked yet holds something else, so a bucket that starts too early is seen in the sums.
template <typename T>
void RunStep(AxisComm& comm, GradientReducer& reducer, std::vector<T>& gradients, int64_t step,
             const std::vector<int64_t>& cuts) {
  std::fill(gradients.begin(), gradients.end(), T{-50000});
  for (size_t c = 0; c + 1 < cuts.size(); ++c) {
    for (int64_t i = cuts[c + 1]; i < cuts[c]; ++i) {
      gradients[static_cast<size_t>(i)] = Gradient<T>(comm.rank(), step, i);
    }
    reducer.MarkFinal(cuts[c + 1], cuts[c]);
  }
  reducer.Finish();
  ASSERT_TRUE(comm.log().status().ok()) << comm.log().status();
  for (int64_t i = 0; i < static_cast<int64_t>(gradients.size()); ++i) {
    T expected = 0;
    for (int rank = 0; rank < comm.size(); ++rank) expected += Gradient<T>(rank, step, i);
    ASSERT_EQ(gradients[static_cast<size_t>(i)], expected)
        << "element " << i << " of " << gradients.size() << ", step " << step;
  }
}

template <typename T>
void CheckSums(AxisComm& comm) {
  uint64_t seed = 0;
  for (const int64_t n : {1, 2, 7, 64, 1009, 30011}) {
    for (const int64_t bucket :
         {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{64}, n, n + 1, 10 * n}) {
      if (n / bucket > 500) continue;  // thousands of tiny messages show nothing more
      std::vector<T> gradients(static_cast<size_t>(n));
      const TensorView view(gradients.data(), DTypeOf<T>::value, {n});
      GradientReducer reducer(comm, view, bucket);
      // Several steps in a row by one reducer, each with other cuts.
      RunStep(comm, reducer, gradients, 0, {n, 0});
      for (const int count : {1, 3, 20}) {
        RunStep(comm, reducer, gradients, count, RandomCuts(n, count, ++seed));
      }
    }
  }
}

TEST_F(GradientReduction, SumsDoubles) {
  CheckSums<double>(axis_);
}

TEST_F(GradientReduction, SumsFloats) {
  CheckSums<float>(axis_);
}

TEST_F(GradientReduction, EmptyRangesAndNoGradientsAtAll) {
  std::vector<double> gradients(10);
  GradientReducer reducer(axis_, TensorView(gradients.data(), DType::kF64, {10}), 4);
  RunStep(axis_, reducer, gradients, 1, {10, 10, 10, 6, 6, 5, 0, 0});
  std::vector<double> none;
  GradientReducer empty(axis_, TensorView(none.data(), DType::kF64, {0}), 4);
  for (int step = 0; step < 2; ++step) {
    empty.MarkFinal(0, 0);
    empty.Finish();
    EXPECT_TRUE(log_.status().ok());
  }
}

// What was marked travels before Finish: with everything marked in one bucket's pieces, a rank that
// only tests for progress sees the sums without calling Finish.
TEST_F(GradientReduction, StartsFullBucketsWhileMarking) {
  constexpr int64_t kSize = 1000;
  std::vector<double> gradients(kSize);
  for (int64_t i = 0; i < kSize; ++i) {
    gradients[static_cast<size_t>(i)] = Gradient<double>(comm_.rank(), 0, i);
  }
  GradientReducer reducer(axis_, TensorView(gradients.data(), DType::kF64, {kSize}), 100);
  reducer.MarkFinal(500, kSize);
  ASSERT_TRUE(comm_.Barrier("all have marked").ok());
  double expected = 0;
  for (int rank = 0; rank < comm_.size(); ++rank) expected += Gradient<double>(rank, 0, kSize - 1);
  const volatile double* last = &gradients[kSize - 1];
  for (int i = 0; i < 20000 && *last != expected; ++i) reducer.MarkFinal(500, 500);
  EXPECT_EQ(*last, expected);
  // The lower half was not final and has not been touched.
  EXPECT_EQ(gradients[499], Gradient<double>(comm_.rank(), 0, 499));
  reducer.MarkFinal(0, 500);
  reducer.Finish();
  EXPECT_TRUE(log_.status().ok());
}

TEST_F(GradientReduction, OneRankHasNothingToWaitFor) {
  std::vector<double> gradients(10, 1);
  GradientReducer reducer(axis_, TensorView(gradients.data(), DType::kF64, {10}), 4);
  RunStep(axis_, reducer, gradients, 0, {10, 0});
  if (comm_.size() == 1) {
    EXPECT_EQ(log_.TakeExposedSeconds(), 0);
  } else {
    EXPECT_GT(log_.TakeExposedSeconds(), 0);
  }
}

}  // namespace
}  // namespace evenkeel
