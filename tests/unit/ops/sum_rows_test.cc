#include "runtime/ops/sum_rows.h"

#include <algorithm>
#include <numeric>

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

struct Lists {
  int64_t x_rows = 0, y_rows = 0;
  std::vector<RowSegment> segments;
  std::vector<int64_t> terms;
};

// Segments of 0 to `max_count` rows with 0 to `max_terms` terms from anywhere in x, in drawn order
// in y with gaps between some of them; their terms are not in the segments' order.
Lists Drawn(int64_t num_segments, int64_t max_count, int64_t max_terms, int64_t x_rows,
            uint64_t seed) {
  const Philox random(seed, 3);
  uint64_t draws = 0;
  const auto draw = [&](int64_t end) {
    return static_cast<int64_t>(random.Bits(draws++) % static_cast<uint64_t>(end));
  };
  Lists lists;
  lists.x_rows = x_rows;
  for (int64_t i = 0; i < num_segments; ++i) {
    lists.segments.push_back({0, draw(max_count + 1), 0, draw(max_terms + 1)});
  }
  std::vector<size_t> order(lists.segments.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(draw(static_cast<int64_t>(i)))]);
  }
  for (const size_t i : order) {
    RowSegment& s = lists.segments[i];
    s.to = lists.y_rows + draw(3);
    lists.y_rows = s.to + s.count;
    s.first_term = static_cast<int64_t>(lists.terms.size());
    for (int64_t t = 0; t < s.num_terms; ++t) lists.terms.push_back(draw(x_rows - s.count + 1));
  }
  lists.y_rows += draw(3) + 1;
  return lists;
}

// The definition, with columns [begin, begin + columns) of x's rows of `x_width`.
template <typename T>
std::vector<T> Expected(const Lists& lists, const std::vector<T>& x, int64_t x_width, int64_t begin,
                        int64_t columns, std::vector<T> y, int64_t y_width) {
  for (const RowSegment& s : lists.segments) {
    for (int64_t i = 0; i < s.count; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        T sum = 0;
        for (int64_t t = 0; t < s.num_terms; ++t) {
          const int64_t row = lists.terms[static_cast<size_t>(s.first_term + t)] + i;
          const T term = x[static_cast<size_t>(row * x_width + begin + j)];
          sum = t == 0 ? term : sum + term;
        }
        y[static_cast<size_t>((s.to + i) * y_width + j)] = sum;
      }
    }
  }
  return y;
}

template <typename T>
void CheckSums(const Lists& lists, int64_t columns, int64_t before, int64_t behind,
               int64_t y_padding) {
  const int64_t x_width = before + columns + behind, y_width = columns + y_padding;
  auto x = RandomNormal<T>(lists.x_rows * x_width, 1);
  for (size_t i = 0; i < x.size(); i += 7) x[i] = T{-0.0};  // a single term keeps its sign
  const auto old = RandomNormal<T>(lists.y_rows * y_width, 2);
  const auto expected = Expected(lists, x, x_width, before, columns, old, y_width);
  for (int threads : {1, 2, 3}) {
    OpRunner runner(threads, DTypeOf<T>::value);
    auto y = old;
    SumRowRanges(runner.context(), Mirror(runner.context(), RowSegments(lists.segments)),
                 Mirror(runner.context(), Positions(lists.terms)),
                 ColumnsOf(std::as_const(x), lists.x_rows, x_width, before, before + columns),
                 ColumnsOf(y, lists.y_rows, y_width, 0, columns));
    EXPECT_TRUE(SameBits(y, expected)) << threads << " threads, " << columns << " columns";
  }
}

TEST(SumRowsTest, AddsWhatTheListsNameAndNothingElse) {
  const std::vector<Lists> cases = {
      Drawn(2500, 1, 3, 50, 1),     // single rows
      Drawn(4, 700, 5, 900, 2),     // a few long ones
      Drawn(120, 40, 9, 64, 3),     // a mix
      Drawn(300, 3, 1, 3, 4),       // copies and zeros; every row of x many times
      Drawn(3, 2, 200, 5, 5),       // many terms
      {4, 3, {{1, 2, 0, 0}}, {}},   // zeros
      {4, 3, {{3, 0, 0, 1}}, {4}},  // nothing
      {4, 3, {}, {}},
  };
  for (const Lists& lists : cases) {
    for (const int64_t columns : {1, 16, 37, 64, 131}) {
      CheckSums<double>(lists, columns, 0, 0, 0);
      CheckSums<double>(lists, columns, 3, 2, 5);
      CheckSums<float>(lists, columns, 0, 1, 0);
      CheckSums<float>(lists, columns, 8, 0, 3);
    }
  }
}

TEST(SumRowsTest, TakesRowsWiderThanAThreadsShare) {
  CheckSums<float>(Drawn(7, 2, 4, 9, 6), 9001, 1, 0, 2);
}

TEST(SumRowsTest, AddsInTheOrderOfTheTerms) {
  const std::vector<float> x = {1e8f, 1.0f, -1e8f};
  std::vector<float> y(3, 7.0f);
  OpRunner runner(1, DType::kF32);
  const std::vector<RowSegment> segments = {{0, 1, 0, 3}, {2, 1, 3, 3}};
  SumRowRanges(runner.context(), segments, std::vector<int64_t>{0, 1, 2, 0, 2, 1},
               ViewOf(x, {3, 1}), ViewOf(y, {3, 1}));
  EXPECT_EQ(y, (std::vector<float>{0.0f, 7.0f, 1.0f}));
}

TEST(SumRowsDeathTest, RefusesWhatIsNotThere) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  OpRunner runner(1);
  const std::vector<double> x(12);
  std::vector<double> y(12);
  const auto sum = [&](const RowSegment& segment, const std::vector<int64_t>& terms) {
    SumRowRanges(runner.context(), std::vector<RowSegment>{segment}, terms, ViewOf(x, {4, 3}),
                 ViewOf(y, {4, 3}));
  };
  EXPECT_DEATH(sum({0, 2, 0, 2}, {0, 3}), "2 rows from 3 of");
  EXPECT_DEATH(sum({0, 1, 0, 1}, {-1}), "1 rows from -1 of");
  EXPECT_DEATH(sum({3, 2, 0, 1}, {0}), "2 rows to 3 of");
  EXPECT_DEATH(sum({0, 1, 1, 2}, {0, 0}), "2 terms from 1 of 2");
  const std::vector<float> floats(12);
  EXPECT_DEATH(SumRowRanges(runner.context(), std::vector<RowSegment>{}, std::vector<int64_t>{},
                            ViewOf(floats, {4, 3}), ViewOf(y, {4, 3})),
               "neither the context's");
}

}  // namespace
}  // namespace evenkeel
