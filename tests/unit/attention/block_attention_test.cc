#include "attention/block_attention.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/attention/softmax_reference.h"

namespace evenkeel {
namespace {

template <typename T>
void Forward(const OpContext& context, const std::vector<AttentionTask>& tasks, double scale,
             AttentionData<T>& data) {
  ReluBlockAttentionForward(context, tasks, scale, ViewOf(data.q, data.QShape()),
                            ViewOf(data.k, data.KShape()), ViewOf(data.v, data.VShape()),
                            ViewOf(data.out, data.OutShape()));
}

template <typename T>
void Backward(const OpContext& context, const std::vector<AttentionTask>& tasks, double scale,
              AttentionData<T>& data) {
  ReluBlockAttentionBackward(context, tasks, scale, ViewOf(data.q, data.QShape()),
                             ViewOf(data.k, data.KShape()), ViewOf(data.v, data.VShape()),
                             ViewOf(data.dout, data.OutShape()), ViewOf(data.dq, data.QShape()),
                             ViewOf(data.dk, data.KShape()), ViewOf(data.dv, data.VShape()));
}

template <typename T>
void ClearKeyGradients(AttentionData<T>& data) {
  std::fill(data.dk.begin(), data.dk.end(), T{0});
  std::fill(data.dv.begin(), data.dv.end(), T{0});
}

TEST(BlockAttentionTest, BlocksStartAtTheFirstTokenOfEachDocument) {
  const std::vector<AttentionTask> tasks = TasksOfBlocks({0, 5, 5, 6, 14}, 4);
  const int64_t expected[][2] = {{0, 4}, {4, 1}, {5, 1}, {6, 4}, {10, 4}};
  ASSERT_EQ(tasks.size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(tasks[i].q_begin, expected[i][0]);
    EXPECT_EQ(tasks[i].q_len, expected[i][1]);
    EXPECT_EQ(tasks[i].kv_begin, expected[i][0]);
    EXPECT_EQ(tasks[i].kv_len, expected[i][1]);
  }
}

TEST(BlockAttentionTest, MatchesReference) {
  const int64_t sizes[][2] = {{1, 1}, {7, 9}, {32, 32}, {80, 24}};
  for (int64_t block : {1, 3, 32, 64, 65, 300}) {
    for (const auto& size : sizes) {
      SCOPED_TRACE(testing::Message() << block << " " << size[0]);
      const std::vector<AttentionTask> tasks = TasksOfBlocks({0, 131, 132, 300}, block);
      const AttentionShape shape{300, 300, 2, 2, size[0], size[1]};
      TestContext test(2);
      AttentionData<double> expected(shape), actual(shape);
      ClearKeyGradients(expected);
      ReferenceForward(tasks, 0.3, true, expected);
      ReferenceBackward(tasks, 0.3, true, expected);
      Forward(test.context, tasks, 0.3, actual);
      Backward(test.context, tasks, 0.3, actual);
      EXPECT_LT(RelativeError(actual.out, expected.out), 1e-13);
      EXPECT_LT(RelativeError(actual.dq, expected.dq), 1e-13);
      EXPECT_LT(RelativeError(actual.dk, expected.dk), 1e-13);
      EXPECT_LT(RelativeError(actual.dv, expected.dv), 1e-13);
      AttentionData<float> single(shape);
      Forward(test.context, tasks, 0.3, single);
      Backward(test.context, tasks, 0.3, single);
      EXPECT_LT(RelativeError(single.out, expected.out), 2e-6);
      EXPECT_LT(RelativeError(single.dk, expected.dk), 2e-6);
      EXPECT_LT(RelativeError(single.dv, expected.dv), 2e-6);
    }
  }
}

TEST(BlockAttentionTest, GradientIsTheDerivative) {
  const AttentionShape shape{13, 13, 2, 2, 4, 3};
  const std::vector<AttentionTask> tasks = TasksOfBlocks({0, 6, 13}, 5);
  TestContext test(1);
  AttentionData<double> data(shape);
  Backward(test.context, tasks, 0.5, data);
  const auto loss = [&] {
    Forward(test.context, tasks, 0.5, data);
    double sum = 0;
    for (size_t i = 0; i < data.out.size(); ++i) sum += data.out[i] * data.dout[i];
    return sum;
  };
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient) {
    std::vector<double> numeric;
    for (double& value : x) {
      const double saved = value, step = 1e-6;
      value = saved + step;
      const double above = loss();
      value = saved - step;
      const double below = loss();
      value = saved;
      numeric.push_back((above - below) / (2 * step));
    }
    EXPECT_LT(RelativeError(gradient, numeric), 1e-6);
  };
  check(data.q, data.dq);
  check(data.k, data.dk);
  check(data.v, data.dv);
}

TEST(BlockAttentionTest, BlocksAreApartAndNanStaysInside) {
  const AttentionShape shape{96, 96, 1, 1, 16, 16};
  const std::vector<AttentionTask> tasks = TasksOfBlocks({0, 96}, 32);
  TestContext test(2);
  AttentionData<float> clean(shape);
  AttentionData<float> dirty = clean;
  dirty.k[40 * 16] = std::numeric_limits<float>::quiet_NaN();
  for (AttentionData<float>* data : {&clean, &dirty}) {
    Forward(test.context, tasks, 1, *data);
    Backward(test.context, tasks, 1, *data);
  }
  for (int64_t row = 0; row < 96; ++row) {
    const bool sees = row >= 40 && row < 64;
    EXPECT_EQ(std::isnan(dirty.out[row * 16]), sees) << row;
    EXPECT_EQ(std::isnan(dirty.dq[row * 16]), sees) << row;
    if (row < 32 || row >= 64) {
      EXPECT_EQ(std::memcmp(&clean.out[row * 16], &dirty.out[row * 16], 64), 0) << row;
      EXPECT_EQ(std::memcmp(&clean.dk[row * 16], &dirty.dk[row * 16], 64), 0) << row;
    }
  }
}

}  // namespace
}  // namespace evenkeel
