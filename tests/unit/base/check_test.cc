#include "runtime/base/check.h"

#include <gtest/gtest.h>

namespace evenkeel {
namespace {

TEST(Check, AbortsWithPlaceConditionAndDetail) {
  const int rows = 3;
  EXPECT_DEATH(EK_CHECK(rows == 4) << "rows " << rows,
               "check_test\\.cc:[0-9]+: check failed: rows == 4 rows 3");
}

TEST(Check, EvaluatesItsConditionOnceAndItsDetailNever) {
  int conditions = 0, details = 0;
  EK_CHECK(++conditions > 0) << ++details;
  EXPECT_EQ(conditions, 1);
  EXPECT_EQ(details, 0);
}

TEST(Check, IsOneStatement) {
  // An else after it belongs to the if around it.
  bool reached = false;
  if (reached)
    EK_CHECK(true);
  else
    reached = true;
  EXPECT_TRUE(reached);
}

TEST(Check, DebugChecksFollowTheBuildType) {
  int evaluated = 0;
  const auto fails = [&] {
    EK_DCHECK(++evaluated == 0);
    return evaluated;
  };
#ifdef NDEBUG
  EXPECT_EQ(fails(), 0);
#else
  EXPECT_DEATH((void)fails(), "check failed");
#endif
}

}  // namespace
}  // namespace evenkeel
