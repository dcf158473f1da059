#include "attention/merge_state.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/attention/softmax_reference.h"

namespace evenkeel {
namespace {

constexpr int64_t kRows = 37, kHeads = 3, kSize = 5;

struct State {
  std::vector<double> out, lse;

  explicit State(uint64_t seed) {
    const Philox random(seed, 0);
    for (uint64_t i = 0; i < kRows * kHeads * kSize; ++i) out.push_back(random.Normal(i));
    for (uint64_t i = 0; i < kRows * kHeads; ++i) lse.push_back(4 * random.Normal(1000000 + i));
  }
  TensorView OutView() { return ViewOf(out, {kRows, kHeads, kSize}); }
  TensorView LseView() { return ViewOf(lse, {kRows, kHeads}); }
};

void Fold(const OpContext& context, State& part, State& into) {
  MergeState(context, part.OutView(), part.LseView(), into.OutView(), into.LseView());
}

TEST(MergeStateTest, IsTheWeightedSum) {
  TestContext test(2);
  State a(1), b(2);
  const State before = a;
  Fold(test.context, b, a);
  for (int64_t i = 0; i < kRows * kHeads; ++i) {
    const double wa = std::exp(before.lse[i]), wb = std::exp(b.lse[i]);
    EXPECT_NEAR(a.lse[i], std::log(wa + wb), 1e-13);
    for (int64_t e = 0; e < kSize; ++e) {
      const double expected =
          (wa * before.out[i * kSize + e] + wb * b.out[i * kSize + e]) / (wa + wb);
      EXPECT_NEAR(a.out[i * kSize + e], expected, 1e-13);
    }
  }
}

TEST(MergeStateTest, IdentityIsExactOnBothSides) {
  TestContext test(1);
  State a(1), identity(2);
  SetIdentityState(test.context, identity.OutView(), identity.LseView());
  const State before = a;
  Fold(test.context, identity, a);
  EXPECT_EQ(a.out, before.out);
  EXPECT_EQ(a.lse, before.lse);
  State into = identity;
  Fold(test.context, a, into);
  EXPECT_EQ(into.out, before.out);
  EXPECT_EQ(into.lse, before.lse);
  Fold(test.context, identity, identity);
  EXPECT_EQ(identity.out, std::vector<double>(kRows * kHeads * kSize, 0.0));
  for (double lse : identity.lse) EXPECT_EQ(lse, -std::numeric_limits<double>::infinity());
}

TEST(MergeStateTest, IsAssociative) {
  TestContext test(1);
  State a(1), b(2), c(3);
  for (int64_t i = 0; i < kRows; i += 4) b.lse[i] = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < kRows; i += 3) c.lse[i] = 800;  // exp overflows, the merge must not
  State left = a, right = b;
  Fold(test.context, b, left);
  Fold(test.context, c, left);
  Fold(test.context, c, right);
  State whole = a;
  Fold(test.context, right, whole);
  EXPECT_LT(RelativeError(left.out, whole.out), 1e-14);
  EXPECT_LT(RelativeError(left.lse, whole.lse), 1e-14);
}

TEST(MergeStateTest, NanIsKept) {
  TestContext test(1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double none = -std::numeric_limits<double>::infinity();
  const double pairs[][2] = {{nan, 1}, {1, nan}, {nan, none}, {none, nan}};
  for (const auto& pair : pairs) {
    State a(1), b(2);
    a.lse[0] = pair[0];
    b.lse[0] = pair[1];
    Fold(test.context, b, a);
    EXPECT_TRUE(std::isnan(a.lse[0])) << pair[0] << " " << pair[1];
    EXPECT_FALSE(std::isnan(a.lse[1]));
  }
}

TEST(MergeStateTest, NoRows) {
  TestContext test(2);
  std::vector<float> none(1, 1.0f);
  const TensorView out = ViewOf(none, {0, 2, 3}), lse = ViewOf(none, {0, 2});
  MergeState(test.context, out, lse, out, lse);
  SetIdentityState(test.context, out, lse);
  EXPECT_EQ(none[0], 1.0f);
}

}  // namespace
}  // namespace evenkeel
