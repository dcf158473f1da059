#include "runtime/ops/fp8_scales.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/base/philox.h"
#include "runtime/ops/fp8_scale.h"

namespace evenkeel {
namespace {

TEST(Fp8ScaleOf, IsTheLargestPowerOfTwoThatKeepsWithinTheRange) {
  const Philox random(1, 1);
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto amax = static_cast<float>(std::exp(30.0 * random.Normal(i)));
    if (!(amax > 1e-25f) || !(amax < 1e30f)) continue;
    for (const float largest : {kLargestE4M3, kLargestE5M2}) {
      const float scale = Fp8ScaleOf(amax, largest);
      int exponent = 0;
      EXPECT_EQ(std::frexp(scale, &exponent), 0.5f) << "of " << amax;
      EXPECT_LE(scale * amax, largest) << "of " << amax;
      EXPECT_GT(2.0f * scale * amax, largest) << "of " << amax;
    }
  }
  EXPECT_EQ(Fp8ScaleOf(kLargestE4M3, kLargestE4M3), 1.0f);
}

TEST(Fp8ScaleOf, HasAnAnswerForEveryNumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float amax : {0.0f, -1.0f, kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(Fp8ScaleOf(amax, kLargestE4M3), 1.0f);
  }
  const float most = std::ldexp(1.0f, 100);
  EXPECT_EQ(Fp8ScaleOf(std::numeric_limits<float>::denorm_min(), kLargestE5M2), most);
  EXPECT_EQ(Fp8ScaleOf(1e-30f, kLargestE5M2), most);
  EXPECT_GT(Fp8ScaleOf(std::numeric_limits<float>::max(), kLargestE4M3), 0.0f);
}

class Fp8ScalesTest : public testing::Test {
 protected:
  Fp8Scales Make() {
    return *Fp8Scales::Create(context_, {DType::kF8E4M3, DType::kF8E5M2, DType::kF8E4M3}, tracker_);
  }

  MemoryTracker tracker_;
  ThreadPool pool_{1};
  Arena arena_ = *Arena::Create(int64_t{1} << 20, tracker_);
  OpContext context_{pool_, arena_};
};

TEST_F(Fp8ScalesTest, FollowTheLargestValuesAndForgetPeaks) {
  Fp8Scales scales = Make();
  EXPECT_TRUE(scales.is_calibrating());
  EXPECT_TRUE(scales.known().empty());
  ASSERT_TRUE(scales.Learn(context_, {7.0, 7.0, 0.0}).ok());
  EXPECT_FALSE(scales.is_calibrating());
  EXPECT_EQ(*scales.scale(0), 64.0f);
  EXPECT_EQ(*scales.inverse(0), 1.0f / 64);
  EXPECT_EQ(*scales.scale(1), 8192.0f);
  EXPECT_EQ(*scales.scale(2), 1.0f) << "nothing is known of it";
  // What is larger counts at once, what is smaller little by little.
  ASSERT_TRUE(scales.Learn(context_, {70.0, 0.1, 3.5}).ok());
  EXPECT_EQ(scales.known()[0], 70.0);
  EXPECT_EQ(scales.known()[1], Fp8Scales::kFading * 7.0);
  EXPECT_EQ(*scales.scale(2), 128.0f);
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(scales.Learn(context_, {70.0, 0.1, 3.5}).ok());
  EXPECT_EQ(scales.known()[1], 0.1);
}

TEST_F(Fp8ScalesTest, PassOverWhatIsNoNumber) {
  Fp8Scales scales = Make();
  ASSERT_TRUE(scales.Learn(context_, {7.0, 7.0, 7.0}).ok());
  ASSERT_TRUE(scales
                  .Learn(context_, {std::numeric_limits<double>::infinity(),
                                    std::numeric_limits<double>::quiet_NaN(), 0.0})
                  .ok());
  for (const double known : scales.known()) EXPECT_EQ(known, 7.0);
}

TEST_F(Fp8ScalesTest, GoOnFromWhatOthersKnew) {
  Fp8Scales first = Make();
  ASSERT_TRUE(first.Learn(context_, {0.3, 1e-7, 12.0}).ok());
  Fp8Scales second = Make();
  ASSERT_TRUE(second.Restore(context_, first.known()).ok());
  EXPECT_FALSE(second.is_calibrating());
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(*second.scale(i), *first.scale(i));
  ASSERT_TRUE(first.Learn(context_, {0.1, 1e-6, 12.0}).ok());
  ASSERT_TRUE(second.Learn(context_, {0.1, 1e-6, 12.0}).ok());
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(second.known()[i], first.known()[i]);
}

TEST_F(Fp8ScalesTest, BeginningAStepForgetsWhatWasNoted) {
  Fp8Scales scales = Make();
  *scales.amax(1) = 5.0f;
  EXPECT_EQ(*scales.ReadAmax(context_), std::vector<double>({0.0, 5.0, 0.0}));
  scales.BeginStep(context_);
  EXPECT_EQ(*scales.ReadAmax(context_), std::vector<double>({0.0, 0.0, 0.0}));
}

}  // namespace
}  // namespace evenkeel
