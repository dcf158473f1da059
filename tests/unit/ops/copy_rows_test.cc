#include "runtime/ops/copy_rows.h"

#include <algorithm>

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

// Ranges of lengths that `lengths` repeats, in order of x with gaps, shuffled in y: range i goes
// behind those of ranges i + 1, i + 2, ...; with empty ones among them.
std::vector<RowRange> Shuffled(const std::vector<int64_t>& lengths, int64_t count) {
  std::vector<RowRange> ranges;
  int64_t from = 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t length = lengths[static_cast<size_t>(i) % lengths.size()];
    ranges.push_back({from, 0, length});
    from += length + i % 3;
  }
  int64_t to = 2;
  for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
    range->to = to;
    to += range->count + 1;
  }
  return ranges;
}

int64_t RowsOf(const std::vector<RowRange>& ranges) {
  int64_t rows = 0;
  for (const RowRange& r : ranges) rows = std::max({rows, r.from + r.count, r.to + r.count});
  return rows + 1;
}

// Elements as bytes, so that every dtype takes the same loop.
void CheckCopy(DType dtype, const std::vector<RowRange>& ranges, int64_t columns, int64_t x_padding,
               int64_t y_padding) {
  const auto element = static_cast<size_t>(SizeOf(dtype));
  const auto rows = RowsOf(ranges);
  const int64_t x_width = columns + x_padding, y_width = columns + y_padding;
  const auto bytes = [&](int64_t width, int seed) {
    std::vector<uint8_t> data(static_cast<size_t>(rows * width) * element);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * 151 + i / 7) ^ seed;
    return data;
  };
  const auto x = bytes(x_width, 0), before = bytes(y_width, 0x5a);
  std::vector<uint8_t> expected = before;
  for (const RowRange& range : ranges) {
    for (int64_t i = 0; i < range.count; ++i) {
      for (size_t j = 0; j < static_cast<size_t>(columns) * element; ++j) {
        expected[static_cast<size_t>((range.to + i) * y_width) * element + j] =
            x[static_cast<size_t>((range.from + i) * x_width) * element + j];
      }
    }
  }
  for (int threads : {1, 2, 3}) {
    OpRunner runner(threads);
    auto y = before;
    CopyRowRanges(runner.context(), Mirror(runner.context(), RowRanges(ranges)),
                  ConstTensorView(x.data(), dtype, {rows, x_width}).Columns(0, columns),
                  TensorView(y.data(), dtype, {rows, y_width}).Columns(0, columns));
    EXPECT_TRUE(SameBits(y, expected)) << threads << " threads, " << columns << " columns";
  }
}

TEST(CopyRowsTest, CopiesWhatTheRangesNameAndNothingElse) {
  const std::vector<std::vector<RowRange>> cases = {
      Shuffled({1}, 2500),           // single rows
      Shuffled({700, 400}, 4),       // a few long ones
      Shuffled({1, 0, 3, 90}, 120),  // a mix
      {{0, 0, 1}},
      {{3, 3, 0}},
      {},
  };
  for (const std::vector<RowRange>& ranges : cases) {
    for (int64_t columns : {1, 16, 37}) {
      CheckCopy(DType::kF64, ranges, columns, 0, 0);
      CheckCopy(DType::kF32, ranges, columns, 3, 0);
      CheckCopy(DType::kBF16, ranges, columns, 0, 5);
      CheckCopy(DType::kI64, ranges, columns, 2, 7);
    }
  }
}

TEST(CopyRowsTest, TakesRangesOfWiderRowsThanAThreadsShare) {
  CheckCopy(DType::kF32, Shuffled({1, 2}, 5), 9001, 1, 0);
}

TEST(CopyRowsDeathTest, RefusesRowsThatAreNotThere) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  OpRunner runner(1);
  const std::vector<double> x(12);
  std::vector<double> y(12);
  const auto copy = [&](const RowRange& range) {
    CopyRowRanges(runner.context(), std::vector<RowRange>{range}, ViewOf(x, {4, 3}),
                  ViewOf(y, {4, 3}));
  };
  EXPECT_DEATH(copy({3, 0, 2}), "2 rows from 3");
  EXPECT_DEATH(copy({0, 3, 2}), "2 rows from 0 of .* to 3");
  EXPECT_DEATH(copy({-1, 0, 1}), "1 rows from -1");
}

}  // namespace
}  // namespace evenkeel
