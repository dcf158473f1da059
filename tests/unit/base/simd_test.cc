#include "runtime/base/simd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/base/philox.h"

namespace evenkeel::simd {
namespace {

template <typename T>
class Simd : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Simd, Types);

template <typename T>
T ExpOf(T x) {
  T lanes[kLanes<T>];
  Store(lanes, Exp<T>(Splat(x)));
  for (int i = 1; i < kLanes<T>; ++i) {
    EXPECT_EQ(std::isnan(lanes[i]), std::isnan(lanes[0]));
    if (!std::isnan(lanes[0])) {
      EXPECT_EQ(lanes[i], lanes[0]) << "lane " << i;
    }
  }
  return lanes[0];
}

// Distance of `value` from exp(x), in units of the last place of exp(x) as T.
template <typename T>
double UlpsFromExp(T value, T x) {
  const long double exact = std::exp(static_cast<long double>(x));
  int exponent = 0;
  (void)std::frexp(exact, &exponent);
  const long double ulp = std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits);
  return static_cast<double>(std::abs(static_cast<long double>(value) - exact) / ulp);
}

template <typename T>
struct ExpLimits;
template <>
struct ExpLimits<float> {
  static constexpr float kLowest = -87.33654f, kHighest = 88.37f;
  static constexpr double kUlps = 1.1;
};
template <>
struct ExpLimits<double> {
  static constexpr double kLowest = -708.39, kHighest = 709.0;
  static constexpr double kUlps = 1.1;
};

TYPED_TEST(Simd, ExpIsAccurateOverTheWholeRange) {
  using T = TypeParam;
  using Limits = ExpLimits<T>;
  const Philox random(1, 1);
  double worst = 0, worst_near_zero = 0;
  const auto check = [&](const std::vector<T>& x, double& most) {
    T y[kLanes<T>];
    for (size_t i = 0; i + kLanes<T> <= x.size(); i += kLanes<T>) {
      Store(y, Exp<T>(Load(x.data() + i)));
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        most = std::max(most, UlpsFromExp(y[lane], x[i + static_cast<size_t>(lane)]));
      }
    }
  };
  std::vector<T> all, near_zero, seams;
  for (uint64_t i = 0; i < 400000; ++i) {
    const double u = random.Uniform(i);
    all.push_back(static_cast<T>(Limits::kLowest + u * (Limits::kHighest - Limits::kLowest)));
    near_zero.push_back(static_cast<T>(std::ldexp(u - 0.5, -static_cast<int>(i % 40))));
  }
  // Where the rounding of x / ln 2 changes, |r| is largest.
  for (int n = static_cast<int>(Limits::kLowest / 0.6931) + 2; n < Limits::kHighest / 0.6932 - 1;
       ++n) {
    T x = static_cast<T>((n + 0.5) * 0.69314718055994530942);
    for (int step = 0; step < 8; ++step) x = std::nextafter(x, T{-1000});
    for (int step = 0; step < 16; ++step, x = std::nextafter(x, T{1000})) seams.push_back(x);
  }
  all.push_back(Limits::kLowest);
  all.push_back(Limits::kHighest);
  all.resize(all.size() / kLanes<T> * kLanes<T> + kLanes<T>, T{0});
  check(all, worst);
  check(seams, worst);
  check(near_zero, worst_near_zero);
  this->RecordProperty("worst_ulps", std::to_string(worst));
  std::printf("exp, %d-byte %s: %.3f ulps over the whole range, %.3f in [-0.5, 0.5]\n",
              kVectorBytes, sizeof(T) == 4 ? "float" : "double", worst, worst_near_zero);
  EXPECT_LT(worst, Limits::kUlps);
  EXPECT_LT(worst_near_zero, Limits::kUlps);
  EXPECT_EQ(ExpOf(T{0}), T{1});
  EXPECT_EQ(ExpOf(-T{0}), T{1});
}

TYPED_TEST(Simd, ExpUnderflowsToZero) {
  using T = TypeParam;
  using Limits = ExpLimits<T>;
  // At the limit the result is still normal; just below it is exactly 0.
  EXPECT_GE(ExpOf(Limits::kLowest), std::numeric_limits<T>::min());
  for (const T x : {std::nextafter(Limits::kLowest, T{-1e4}), T{-1e4}, T{-1e30},
                    std::numeric_limits<T>::lowest(), -std::numeric_limits<T>::infinity()}) {
    EXPECT_EQ(ExpOf(x), T{0}) << x;
  }
}

TYPED_TEST(Simd, ExpSaturates) {
  using T = TypeParam;
  using Limits = ExpLimits<T>;
  const T top = ExpOf(Limits::kHighest);
  EXPECT_GT(top, std::numeric_limits<T>::max() / 3);
  for (const T x : {std::nextafter(Limits::kHighest, T{1e4}), T{1e4}, T{1e30},
                    std::numeric_limits<T>::max(), std::numeric_limits<T>::infinity()}) {
    EXPECT_EQ(ExpOf(x), top) << x;
    EXPECT_TRUE(std::isfinite(ExpOf(x)));
  }
}

TYPED_TEST(Simd, ExpKeepsNaN) {
  using T = TypeParam;
  EXPECT_TRUE(std::isnan(ExpOf(std::numeric_limits<T>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(ExpOf(-std::numeric_limits<T>::quiet_NaN())));
}

TYPED_TEST(Simd, ExpTreatsLanesApart) {
  using T = TypeParam;
  const T inputs[] = {T{0}, T{1}, T{-1e5}, std::numeric_limits<T>::quiet_NaN(), T{1e5}, T{-3.25}};
  for (int shift = 0; shift < 6; ++shift) {
    T x[kLanes<T>], y[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) x[i] = inputs[(i + shift) % 6];
    Store(y, Exp<T>(Load(x)));
    for (int i = 0; i < kLanes<T>; ++i) {
      const T alone = ExpOf(x[i]);
      EXPECT_TRUE(y[i] == alone || (std::isnan(y[i]) && std::isnan(alone))) << x[i];
    }
  }
}

TYPED_TEST(Simd, LoadsAndStoresAnywhere) {
  using T = TypeParam;
  std::vector<T> data(3 * kLanes<T>), copy(data.size(), T{-1});
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<T>(i + 1);
  for (int offset = 0; offset < kLanes<T>; ++offset) {
    const auto from = static_cast<size_t>(offset);
    std::fill(copy.begin(), copy.end(), T{-1});
    Store(copy.data() + from, Load(data.data() + from));
    for (size_t i = 0; i < copy.size(); ++i) {
      EXPECT_EQ(copy[i], i >= from && i < from + kLanes<T> ? data[i] : T{-1});
    }
  }
}

TYPED_TEST(Simd, SplatFillsEveryLane) {
  using T = TypeParam;
  T lanes[kLanes<T>];
  Store(lanes, Splat(T{2.5}));
  for (T lane : lanes) EXPECT_EQ(lane, T{2.5});
  EXPECT_EQ(static_cast<int>(sizeof(lanes)), kVectorBytes);
}

TYPED_TEST(Simd, SumIsAPairwiseTree) {
  using T = TypeParam;
  T lanes[kLanes<T>];
  const Philox random(2, 2);
  for (uint64_t repeat = 0; repeat < 20; ++repeat) {
    std::vector<T> tree;
    for (int i = 0; i < kLanes<T>; ++i) {
      lanes[i] = static_cast<T>(random.Normal(repeat * 64 + static_cast<uint64_t>(i)) *
                                std::pow(10.0, i % 5));
      tree.push_back(lanes[i]);
    }
    while (tree.size() > 1) {
      const size_t half = tree.size() / 2;
      for (size_t i = 0; i < half; ++i) tree[i] += tree[i + half];
      tree.resize(half);
    }
    EXPECT_EQ(Sum<T>(Load(lanes)), tree[0]);
  }
}

TYPED_TEST(Simd, MaxFindsTheLargestLaneWhereverItIs) {
  using T = TypeParam;
  const T infinity = std::numeric_limits<T>::infinity();
  for (int at = 0; at < kLanes<T>; ++at) {
    T lanes[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = static_cast<T>(-100 - i);
    lanes[at] = T{-7};
    EXPECT_EQ(Max<T>(Load(lanes)), T{-7}) << at;
    lanes[at] = infinity;
    EXPECT_EQ(Max<T>(Load(lanes)), infinity) << at;
  }
  EXPECT_EQ(Max<T>(Splat(-infinity)), -infinity);
}

TYPED_TEST(Simd, MaxOfTwoIsLaneByLane) {
  using T = TypeParam;
  T a[kLanes<T>], b[kLanes<T>], c[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) {
    a[i] = static_cast<T>(i % 3);
    b[i] = static_cast<T>(i % 4 - 1);
  }
  Store(c, Max<T>(Load(a), Load(b)));
  for (int i = 0; i < kLanes<T>; ++i) EXPECT_EQ(c[i], std::max(a[i], b[i]));
  // A comparison with NaN is false: the second operand is taken, so a NaN in the first is lost.
  const T nan = std::numeric_limits<T>::quiet_NaN();
  Store(c, Max<T>(Splat(nan), Splat(T{1})));
  EXPECT_EQ(c[0], T{1});
  Store(c, Max<T>(Splat(T{1}), Splat(nan)));
  EXPECT_TRUE(std::isnan(c[0]));
}

}  // namespace
}  // namespace evenkeel::simd
