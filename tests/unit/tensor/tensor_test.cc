#include "runtime/tensor/tensor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace evenkeel {
namespace {

constexpr MemoryPurpose kPurpose = MemoryPurpose::kGradients;

Tensor Make(Shape shape, MemoryTracker& tracker, MemoryPurpose purpose = kPurpose) {
  auto tensor = Tensor::Create(DType::kF64, shape, purpose, tracker);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  return *std::move(tensor);
}

TEST(Tensor, IsZeroAlignedAndCounted) {
  MemoryTracker tracker;
  {
    Tensor tensor = Make({3, 7}, tracker);
    EXPECT_EQ(tensor.shape(), (Shape{3, 7}));
    EXPECT_EQ(tensor.dtype(), DType::kF64);
    EXPECT_EQ(tensor.num_bytes(), 168);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view().data) % 64, 0u);
    const double* data = tensor.view().as<double>();
    EXPECT_TRUE(std::all_of(data, data + 21, [](double x) { return x == 0; }));
    EXPECT_EQ(tracker.current(kPurpose), 168);
    EXPECT_EQ(tracker.current_total(), 168);
  }
  EXPECT_EQ(tracker.current(kPurpose), 0);
  EXPECT_EQ(tracker.current_total(), 0);
  EXPECT_EQ(tracker.peak_total(), 168);
}

TEST(Tensor, MovesItsMemory) {
  MemoryTracker tracker;
  Tensor first = Make({4}, tracker);
  first.view().as<double>()[2] = 5;
  const void* data = first.view().data;
  Tensor second = std::move(first);
  EXPECT_TRUE(first.empty());  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(first.num_bytes(), 0);
  EXPECT_EQ(second.view().data, data);
  EXPECT_EQ(second.view().as<double>()[2], 5);
  EXPECT_EQ(tracker.current_total(), 32);
}

TEST(Tensor, AssignmentGivesBackWhatItReplaces) {
  MemoryTracker tracker;
  {
    Tensor target = Make({100}, tracker);
    {
      Tensor source = Make({10}, tracker, MemoryPurpose::kCache);
      target = std::move(source);
    }
    EXPECT_EQ(target.shape(), (Shape{10}));
    EXPECT_EQ(tracker.current(kPurpose), 0);
    EXPECT_EQ(tracker.current(MemoryPurpose::kCache), 80);
    target = Make({5}, tracker);
    EXPECT_EQ(tracker.current(MemoryPurpose::kCache), 0);
    EXPECT_EQ(tracker.current(kPurpose), 40);
    target = Tensor();
    EXPECT_TRUE(target.empty());
    EXPECT_EQ(tracker.current_total(), 0);
  }
  EXPECT_EQ(tracker.current_total(), 0);
}

TEST(Tensor, SurvivesAssignmentToItself) {
  MemoryTracker tracker;
  Tensor tensor = Make({4}, tracker);
  Tensor& same = tensor;
  tensor = std::move(same);
  EXPECT_FALSE(tensor.empty());
  tensor.view().as<double>()[3] = 1;
  EXPECT_EQ(tracker.current_total(), 32);
}

TEST(Tensor, EmptyTensorsAndTensorsOfNoElementsDiffer) {
  MemoryTracker tracker;
  EXPECT_TRUE(Tensor().empty());
  {
    Tensor none = Make({0, 8}, tracker);
    EXPECT_FALSE(none.empty());
    EXPECT_EQ(none.view().num_elements(), 0);
  }
  EXPECT_EQ(tracker.peak_total(), 0);
}

TEST(Tensor, SaysWhatDidNotFit) {
  MemoryTracker tracker;
  const Tensor held = Make({1024}, tracker);
  const auto failed =
      Tensor::Create(DType::kF64, {int64_t{1} << 44}, MemoryPurpose::kOptimizer, tracker);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(failed.status().message(),
            "no memory for optimizer [17592186044416]: 131072.00 GiB asked for, 8.0 KiB in use by "
            "this rank");
  EXPECT_EQ(tracker.current_total(), 8192);
}

}  // namespace
}  // namespace evenkeel
