#include "runtime/tensor/tensor_view.h"

#include <gtest/gtest.h>

#include <numeric>
#include <type_traits>
#include <vector>

namespace evenkeel {
namespace {

static_assert(std::is_convertible_v<TensorView, ConstTensorView>);
static_assert(!std::is_convertible_v<ConstTensorView, TensorView>);

// A dense view whose elements are 0, 1, 2, ... in row-major order.
class Counting {
 public:
  explicit Counting(Shape shape) : data_(static_cast<size_t>(shape.num_elements())), shape_(shape) {
    std::iota(data_.begin(), data_.end(), 0);
  }
  TensorView view() { return TensorView(data_.data(), DType::kI32, shape_); }

 private:
  std::vector<int32_t> data_;
  Shape shape_;
};

// The elements of a view of any rank, in row-major order of its own indices.
std::vector<int32_t> ElementsOf(const ConstTensorView& view) {
  std::vector<int32_t> elements;
  const int64_t n = view.num_elements();
  for (int64_t i = 0; i < n; ++i) {
    int64_t rest = i, offset = 0;
    for (int d = view.rank() - 1; d >= 0; --d) {
      offset += rest % view.dim(d) * view.stride(d);
      rest /= view.dim(d);
    }
    elements.push_back(view.as<int32_t>()[offset]);
  }
  return elements;
}

TEST(Shape, CountsComparesAndPrints) {
  EXPECT_EQ(Shape().num_elements(), 1);
  EXPECT_EQ(Shape().ToString(), "[]");
  EXPECT_EQ((Shape{4, 16, 128}).num_elements(), 8192);
  EXPECT_EQ((Shape{4, 16, 128}).ToString(), "[4, 16, 128]");
  EXPECT_EQ((Shape{3, 0, 5}).num_elements(), 0);
  EXPECT_EQ((Shape{1 << 20, 1 << 20, 8}).num_elements(), int64_t{1} << 43);
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{2, 3, 0}));
  EXPECT_EQ((Shape{1, 2, 3, 4, 5}).rank, 5);
  EXPECT_DEATH((Shape{1, 2, 3, 4, 5, 6}), "check failed");
}

TEST(TensorView, IsDenseFromTheStart) {
  Counting counting({2, 3, 4});
  const TensorView view = counting.view();
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.stride(1), 4);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_TRUE(view.is_dense());
}

TEST(TensorView, SlicesEveryDimension) {
  Counting counting({2, 3, 4});
  const TensorView view = counting.view();
  EXPECT_EQ(ElementsOf(view.Slice(0, 1, 2)),
            (std::vector<int32_t>{12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(ElementsOf(view.Slice(1, 1, 3)),
            (std::vector<int32_t>{4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(ElementsOf(view.Columns(1, 3)),
            (std::vector<int32_t>{1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22}));
  EXPECT_EQ(ElementsOf(view.Rows(1, 2).Slice(1, 2, 3).Columns(3, 4)), (std::vector<int32_t>{23}));
  EXPECT_EQ(view.Rows(2, 2).num_elements(), 0);
}

TEST(TensorView, SliceKnowsTheSizeOfAnElement) {
  double data[6] = {0, 1, 2, 3, 4, 5};
  EXPECT_EQ(TensorView(data, DType::kF64, {6}).Rows(4, 6).as<double>()[0], 4);
  uint16_t halves[6] = {};
  EXPECT_EQ(TensorView(halves, DType::kBF16, {6}).Rows(4, 6).data, halves + 4);
}

TEST(TensorView, KnowsWhetherItIsDense) {
  Counting counting({4, 6});
  const TensorView view = counting.view();
  EXPECT_TRUE(view.Rows(1, 3).is_dense());
  EXPECT_FALSE(view.Columns(0, 3).is_dense());
  EXPECT_TRUE(view.Columns(0, 6).is_dense());
  // One row has no stride that could matter.
  EXPECT_TRUE(view.Columns(0, 3).Rows(2, 3).is_dense());
  // A single column of several rows is strided although its size is one.
  EXPECT_FALSE(view.Columns(2, 3).is_dense());
  EXPECT_TRUE(TensorView().is_dense());
}

TEST(TensorView, ReshapesDenseViews) {
  Counting counting({2, 3, 4});
  const TensorView reshaped = counting.view().Reshape({6, 4}).Rows(1, 3).Reshape({8});
  EXPECT_EQ(ElementsOf(reshaped), (std::vector<int32_t>{4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(reshaped.dtype, DType::kI32);
  EXPECT_DEATH((void)counting.view().Reshape({5, 5}), "\\[2, 3, 4\\] as \\[5, 5\\]");
  EXPECT_DEATH((void)counting.view().Columns(0, 2).Reshape({12}), "check failed");
}

TEST(TensorView, SplitsAndMergesHeadsOfStridedRows) {
  Counting counting({3, 10});
  const TensorView q = counting.view().Columns(2, 8);  // rows 10 apart, 6 wide
  const TensorView heads = q.SplitHeads(3);
  EXPECT_EQ(heads.shape, (Shape{3, 3, 2}));
  EXPECT_EQ(ElementsOf(heads), ElementsOf(q));
  EXPECT_EQ(heads.Slice(1, 2, 3).as<int32_t>()[0], 6);
  const TensorView merged = heads.MergeHeads();
  EXPECT_EQ(merged.shape, q.shape);
  EXPECT_EQ(merged.strides, q.strides);
  EXPECT_EQ(ElementsOf(merged), ElementsOf(q));
  EXPECT_DEATH((void)q.SplitHeads(4), "in 4 heads");
}

TEST(TensorView, MergesOnlyAdjacentHeads) {
  Counting counting({2, 3, 4});
  const TensorView view = counting.view();
  // Heads cut short leave gaps; a run of whole heads does not.
  EXPECT_DEATH((void)view.Columns(0, 2).MergeHeads(), "\\[2, 3, 2\\]");
  EXPECT_EQ(ElementsOf(view.Slice(1, 1, 3).MergeHeads()), ElementsOf(view.Slice(1, 1, 3)));
  // One head may be cut: there is no neighbour to be adjacent to.
  EXPECT_EQ(ElementsOf(view.Slice(1, 1, 2).Columns(1, 3).MergeHeads()),
            (std::vector<int32_t>{5, 6, 17, 18}));
}

TEST(TensorView, RefusesSlicesOutOfRange) {
  Counting counting({2, 3});
  const TensorView view = counting.view();
  EXPECT_DEATH((void)view.Rows(0, 3), "slice \\[0, 3\\) of dimension 0 of \\[2, 3\\]");
  EXPECT_DEATH((void)view.Rows(-1, 1), "slice \\[-1, 1\\)");
  EXPECT_DEATH((void)view.Columns(2, 1), "slice \\[2, 1\\) of dimension 1");
}

TEST(TensorView, ChecksTheDType) {
  Counting counting({2});
  EXPECT_DEATH((void)counting.view().as<float>(), "wrong dtype for \\[2\\]");
  EXPECT_EQ(TensorView().as<double>(), nullptr);
}

TEST(TensorView, AbsentViewsStayAbsentWhenSliced) {
  const TensorView absent(nullptr, DType::kF32, {4, 4});
  EXPECT_TRUE(absent.Rows(2, 4).empty());
}

TEST(DispatchFloat, CallsTheTypeOfTheDType) {
  const auto size = []<typename T>() { return sizeof(T); };
  EXPECT_EQ(DispatchFloat(DType::kF32, size), 4u);
  EXPECT_EQ(DispatchFloat(DType::kF64, size), 8u);
  EXPECT_DEATH((void)DispatchFloat(DType::kI32, size), "not a floating type");
}

TEST(DType, HasItsSize) {
  EXPECT_EQ(SizeOf(DType::kF32), 4);
  EXPECT_EQ(SizeOf(DType::kF64), 8);
  EXPECT_EQ(SizeOf(DType::kBF16), 2);
  EXPECT_EQ(SizeOf(DType::kI32), 4);
  EXPECT_EQ(SizeOf(DType::kI64), 8);
}

}  // namespace
}  // namespace evenkeel
