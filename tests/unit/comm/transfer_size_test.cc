#include "runtime/comm/transfer_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace evenkeel {
namespace {

using ::testing::ElementsAre;

TEST(TransferSize, IsDescribedByElementsAndType) {
  EXPECT_EQ(DescribeSize(ConstTensorView(nullptr, DType::kF32, {2, 512})), "1024 x f32");
  EXPECT_EQ(DescribeSize(ConstTensorView(nullptr, DType::kBF16, {0, 7})), "0 x bf16");
  EXPECT_EQ(DescribeSize(ConstTensorView(nullptr, DType::kF64, {1})), "1 x f64");
  EXPECT_EQ(DescribeSize(ConstTensorView(nullptr, DType::kI32, {3})), "3 x i32");
  EXPECT_EQ(DescribeSize(ConstTensorView(nullptr, DType::kI64, {3})), "3 x i64");
}

TEST(TransferSize, OfRowsDoesNotDependOnTheirNumber) {
  for (const int64_t rows : {0, 1, 5}) {
    const ConstTensorView view(nullptr, DType::kBF16, {rows, 3, 4});
    EXPECT_EQ(RowElements(view), 12);
    EXPECT_EQ(RowBytes(view), 24);
    EXPECT_EQ(BytesOf(view), 24 * rows);
  }
  EXPECT_EQ(RowBytes(ConstTensorView(nullptr, DType::kF64, {9})), 8);
  EXPECT_EQ(RowBytes(ConstTensorView(nullptr, DType::kF64, {9, 0})), 0);
}

TEST(TransferSize, RowsLieInRankOrder) {
  const std::vector<int64_t> rows = {3, 0, int64_t{1} << 40, 2};
  EXPECT_THAT(RowOffsets(rows),
              ElementsAre(0, 3, 3, (int64_t{1} << 40) + 3, (int64_t{1} << 40) + 5));
  EXPECT_THAT(RowOffsets({}), ElementsAre(0));
}

TEST(TransferSizeDeathTest, NegativeRowsAreABug) {
  const std::vector<int64_t> rows = {3, -1};
  EXPECT_DEATH((void)RowOffsets(rows), "-1 rows of rank 1");
}

}  // namespace
}  // namespace evenkeel
