#include "runtime/ops/split_norm.h"

#include "runtime/ops/norm.h"
#include "tests/support/finite_difference.h"
#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

constexpr double kEps = 1e-5;

template <typename T>
struct Passes {
  std::vector<T> y, dx, dgate;
};

// Both passes with columns [bounds[p], bounds[p + 1]) on rank p. Everything is columns of wider
// rows, `padding` of them beside.
template <typename T>
Passes<T> Split(const OpContext& context, int64_t rows, const std::vector<int64_t>& bounds,
                const std::vector<T>& x, const std::vector<T>& gate, const std::vector<T>& dy,
                bool in_place) {
  const int64_t columns = bounds.back();
  const size_t ranks = bounds.size() - 1;
  Passes<T> out{std::vector<T>(x.size()), in_place ? dy : std::vector<T>(x.size()),
                std::vector<T>(gate.size())};
  const auto part = [&](auto& data, size_t p) {
    return ViewOf(data, {rows, columns}).Columns(bounds[p], bounds[p + 1]);
  };
  const auto gate_part = [&](auto& data, size_t p) {
    return gate.empty() ? decltype(part(data, p)){} : part(data, p);
  };
  const auto over_ranks = [&](const auto& op) {
    std::vector<T> sum(static_cast<size_t>(rows));
    for (size_t p = 0; p < ranks; ++p) {
      std::vector<T> here(sum.size(), -7);
      op(p, ViewOf(here, {rows}));
      for (size_t t = 0; t < sum.size(); ++t) sum[t] += here[t];
    }
    return sum;
  };
  const auto sums =
      over_ranks([&](size_t p, TensorView here) { RowSquares(context, part(x, p), here); });
  const auto sums_view = ViewOf(sums, {rows});
  for (size_t p = 0; p < ranks; ++p) {
    SplitNormForward(context, part(x, p), gate_part(gate, p), sums_view, columns, kEps,
                     part(out.y, p));
  }
  const auto dots = over_ranks([&](size_t p, TensorView here) {
    SplitNormDots(context, part(x, p), gate_part(gate, p), sums_view, columns, kEps, part(dy, p),
                  here);
  });
  for (size_t p = 0; p < ranks; ++p) {
    const ConstTensorView d = in_place ? ConstTensorView(part(out.dx, p)) : part(dy, p);
    SplitNormBackward(context, part(x, p), gate_part(gate, p), sums_view, ViewOf(dots, {rows}),
                      columns, kEps, d, part(out.dx, p), gate_part(out.dgate, p));
  }
  return out;
}

// The ops of norm.h on whole rows.
template <typename T>
Passes<T> Whole(const OpContext& context, int64_t rows, int64_t columns, const std::vector<T>& x,
                const std::vector<T>& gate, const std::vector<T>& dy) {
  Passes<T> out{std::vector<T>(x.size()), std::vector<T>(x.size()), std::vector<T>(gate.size())};
  const Shape shape = {rows, columns};
  if (gate.empty()) {
    RmsNormForward(context, ViewOf(x, shape), {}, kEps, ViewOf(out.y, shape));
    RmsNormBackward(context, ViewOf(x, shape), {}, kEps, ViewOf(dy, shape), ViewOf(out.dx, shape),
                    false, {});
  } else {
    GatedRmsNormForward(context, ViewOf(x, shape), ViewOf(gate, shape), kEps, ViewOf(out.y, shape));
    GatedRmsNormBackward(context, ViewOf(x, shape), ViewOf(gate, shape), kEps, ViewOf(dy, shape),
                         ViewOf(out.dx, shape), ViewOf(out.dgate, shape));
  }
  return out;
}

// Bounds of `ranks` slices at random places; some slices may be empty.
std::vector<int64_t> RandomBounds(int64_t columns, int ranks, uint64_t seed) {
  std::vector<int64_t> bounds = {0, columns};
  for (const int32_t cut : RandomTokens(ranks - 1, static_cast<int32_t>(columns) + 1, seed)) {
    bounds.push_back(cut);
  }
  std::sort(bounds.begin(), bounds.end());
  return bounds;
}

template <typename T>
void CheckAgainstWhole(double tolerance) {
  OpRunner runner(2, DTypeOf<T>::value);
  for (int64_t rows : {0, 1, 3, 300}) {
    for (int64_t columns : {1, 16, 97, 320}) {
      for (bool gated : {false, true}) {
        const auto x = RandomNormal<T>(rows * columns, 1, 3);
        const auto gate = gated ? RandomNormal<T>(rows * columns, 2) : std::vector<T>{};
        const auto dy = RandomNormal<T>(rows * columns, 3);
        if (gated && rows == 0) continue;  // a gate without elements is none
        const auto want = Whole(runner.context(), rows, columns, x, gate, dy);
        for (int ranks : {1, 2, 5}) {
          for (bool in_place : {false, true}) {
            SCOPED_TRACE(testing::Message() << rows << " x " << columns << " gate " << gated
                                            << " on " << ranks << " ranks");
            const auto bounds = RandomBounds(columns, ranks, static_cast<uint64_t>(columns));
            const auto got = Split(runner.context(), rows, bounds, x, gate, dy, in_place);
            EXPECT_LT(MaxError(got.y, want.y), tolerance);
            EXPECT_LT(MaxError(got.dx, want.dx), tolerance);
            EXPECT_LT(MaxError(got.dgate, want.dgate), tolerance);
          }
        }
      }
    }
  }
}

TEST(SplitNormTest, EqualsTheNormOfWholeRows) {
  CheckAgainstWhole<double>(1e-13);
  CheckAgainstWhole<float>(1e-5);
}

TEST(SplitNormTest, BackwardMatchesFiniteDifferences) {
  OpRunner runner(2);
  const int64_t rows = 7, columns = 33;
  auto x = RandomNormal(rows * columns, 1), gate = RandomNormal(rows * columns, 2);
  for (double& value : x) value += value < 0 ? -0.5 : 0.5;  // away from a zero norm
  const auto dy = RandomNormal(rows * columns, 3);
  const std::vector<int64_t> bounds = {0, 5, 20, 33};
  const auto got = Split(runner.context(), rows, bounds, x, gate, dy, false);
  const auto loss = [&] {
    return Dot(Split(runner.context(), rows, bounds, x, gate, dy, false).y, dy);
  };
  EXPECT_LT(MaxGradientError(loss, x.data(), got.dx.data(), rows * columns, 20, 5), 1e-6);
  EXPECT_LT(MaxGradientError(loss, gate.data(), got.dgate.data(), rows * columns, 20, 6), 1e-6);
}

TEST(SplitNormTest, ReadsAndWritesItsColumnsOnly) {
  OpRunner runner(2);
  const int64_t rows = 5, columns = 21, width = 70;
  const auto wide = RandomNormal(rows * width, 1);
  const auto in = [&](int64_t begin) {
    return ColumnsOf(wide, rows, width, begin, begin + columns);
  };
  std::vector<double> sums(5), dots(5), x, gate, dy;
  RowSquares(runner.context(), in(3), ViewOf(sums, {rows}));
  SplitNormDots(runner.context(), in(3), in(24), ViewOf(sums, {rows}), columns, kEps, in(45),
                ViewOf(dots, {rows}));
  auto out = wide;
  const auto to = [&](int64_t begin) {
    return ColumnsOf(out, rows, width, begin, begin + columns);
  };
  SplitNormBackward(runner.context(), in(3), in(24), ViewOf(sums, {rows}), ViewOf(dots, {rows}),
                    columns, kEps, in(45), to(3), to(24));
  SplitNormForward(runner.context(), in(3), in(24), ViewOf(sums, {rows}), columns, kEps, to(45));
  for (size_t t = 0; t < 5; ++t) {
    const auto row = wide.begin() + static_cast<int64_t>(t) * width;
    x.insert(x.end(), row + 3, row + 24);
    gate.insert(gate.end(), row + 24, row + 45);
    dy.insert(dy.end(), row + 45, row + 66);
  }
  const auto want = Whole(runner.context(), rows, columns, x, gate, dy);
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t t = i / 70, j = i % 70;
    const double expected = j < 3 || j >= 66 ? wide[i]
                            : j < 24         ? want.dx[t * 21 + j - 3]
                            : j < 45         ? want.dgate[t * 21 + j - 24]
                                             : want.y[t * 21 + j - 45];
    EXPECT_NEAR(out[i], expected, 1e-13) << t << " " << j;
  }
}

TEST(SplitNormTest, BitsDoNotDependOnThreads) {
  const int64_t rows = 700, columns = 99;
  const auto x = RandomNormal<float>(rows * columns, 1),
             gate = RandomNormal<float>(rows * columns, 2);
  const auto dy = RandomNormal<float>(rows * columns, 3);
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    auto out = Split(context, rows, {0, 40, 99}, x, gate, dy, false);
    out.y.insert(out.y.end(), out.dx.begin(), out.dx.end());
    out.y.insert(out.y.end(), out.dgate.begin(), out.dgate.end());
    return out.y;
  });
}

}  // namespace
}  // namespace evenkeel
