#include "attention/softmax_attention.h"

#include <cstring>
#include <random>
#include <string>

#include "attention/kernels/softmax_schedule.h"
#include "attention/merge_state.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/attention/softmax_reference.h"

namespace evenkeel {
namespace {

template <typename T>
void Forward(const OpContext& context, const std::vector<AttentionTask>& tasks, double scale,
             AttentionData<T>& data) {
  SoftmaxAttentionForward(context, tasks, scale, ViewOf(data.q, data.QShape()),
                          ViewOf(data.k, data.KShape()), ViewOf(data.v, data.VShape()),
                          ViewOf(data.out, data.OutShape()), ViewOf(data.lse, data.LseShape()));
}

template <typename T>
void Backward(const OpContext& context, const std::vector<AttentionTask>& tasks, double scale,
              AttentionData<T>& data) {
  SoftmaxAttentionBackward(context, tasks, scale, ViewOf(data.q, data.QShape()),
                           ViewOf(data.k, data.KShape()), ViewOf(data.v, data.VShape()),
                           ViewOf(data.out, data.OutShape()), ViewOf(data.lse, data.LseShape()),
                           ViewOf(data.dout, data.OutShape()), ViewOf(data.dq, data.QShape()),
                           ViewOf(data.dk, data.KShape()), ViewOf(data.dv, data.VShape()));
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Forward and backward against the reference: 1e-12 in float64; in float32 at most twice the error
// of the same plain loops in float32, and some units in the last place.
void ExpectMatchesReference(const std::vector<AttentionTask>& tasks, const AttentionShape& shape,
                            double scale, int threads) {
  TestContext test(threads);
  AttentionData<double> expected(shape), actual(shape);
  ReferenceForward(tasks, scale, false, expected);
  ReferenceBackward(tasks, scale, false, expected);
  Forward(test.context, tasks, scale, actual);
  EXPECT_LT(RelativeError(actual.out, expected.out), 1e-12);
  EXPECT_LT(RelativeError(actual.lse, expected.lse), 1e-12);
  Backward(test.context, tasks, scale, actual);
  EXPECT_LT(RelativeError(actual.dq, expected.dq), 1e-12);
  EXPECT_LT(RelativeError(actual.dk, expected.dk), 1e-12);
  EXPECT_LT(RelativeError(actual.dv, expected.dv), 1e-12);

  AttentionData<float> single(shape), naive(shape);
  ReferenceForward(tasks, scale, false, naive);
  ReferenceBackward(tasks, scale, false, naive);
  Forward(test.context, tasks, scale, single);
  Backward(test.context, tasks, scale, single);
  const auto expect_close = [](const std::vector<float>& x, const std::vector<float>& plain,
                               const std::vector<double>& exact, const char* name) {
    EXPECT_LE(RelativeError(x, exact), 2 * RelativeError(plain, exact) + 1e-6) << name;
  };
  expect_close(single.out, naive.out, expected.out, "out");
  expect_close(single.lse, naive.lse, expected.lse, "lse");
  expect_close(single.dq, naive.dq, expected.dq, "dq");
  expect_close(single.dk, naive.dk, expected.dk, "dk");
  expect_close(single.dv, naive.dv, expected.dv, "dv");
  EXPECT_EQ(test.arena.bytes_in_use(), 0);
}

TEST(AttentionTaskTest, DocumentsBecomeTasks) {
  const std::vector<AttentionTask> tasks = TasksOfDocuments({0, 3, 3, 10});
  ASSERT_EQ(tasks.size(), 2u);
  EXPECT_EQ(tasks[1].q_begin, 3);
  EXPECT_EQ(tasks[1].q_len, 7);
  EXPECT_EQ(tasks[1].kv_begin, 3);
  EXPECT_EQ(tasks[1].kv_len, 7);
  EXPECT_TRUE(TasksOfDocuments({0}).empty());
  EXPECT_TRUE(TasksOfDocuments({}).empty());
}

TEST(AttentionTaskTest, PairsAreCounted) {
  for (int64_t q_len = 0; q_len < 6; ++q_len) {
    for (int64_t kv_len = 0; kv_len < 6; ++kv_len) {
      int64_t pairs = 0;
      for (int64_t i = 0; i < q_len; ++i) pairs += std::max<int64_t>(0, kv_len - q_len + 1 + i);
      EXPECT_EQ(NumPairs({0, q_len, 0, kv_len}), pairs) << q_len << " " << kv_len;
    }
  }
}

TEST(SoftmaxScheduleTest, TasksThatShareKeysRunInTheOrderOfTheList) {
  EXPECT_THAT(WavesOfTasks({{0, 4, 0, 4}, {4, 4, 4, 4}, {8, 4, 8, 4}}),
              testing::ElementsAre(0, 0, 0));
  EXPECT_THAT(
      WavesOfTasks({{0, 4, 0, 4}, {4, 4, 0, 8}, {8, 4, 8, 4}, {12, 1, 6, 3}, {13, 1, 0, 0}}),
      testing::ElementsAre(0, 1, 0, 2, 0));
  EXPECT_TRUE(WavesOfTasks({}).empty());
}

TEST(SoftmaxAttentionTest, LengthsAroundEdges) {
  for (int64_t length : {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,  31,
                         32, 33, 63, 64, 65, 97, 127, 128, 129, 191, 193, 257}) {
    SCOPED_TRACE(length);
    ExpectMatchesReference({{0, length, 0, length}}, {length, length, 2, 1, 16, 16}, 0.25, 1);
  }
}

TEST(SoftmaxAttentionTest, HeadSizes) {
  const int64_t sizes[][2] = {{1, 1},   {7, 7},   {8, 24},  {24, 8},
                              {80, 80}, {33, 65}, {128, 1}, {256, 192}};
  for (const auto& size : sizes) {
    SCOPED_TRACE(std::to_string(size[0]) + " " + std::to_string(size[1]));
    ExpectMatchesReference({{0, 70, 0, 70}, {70, 3, 70, 20}}, {73, 90, 2, 2, size[0], size[1]},
                           1 / std::sqrt(static_cast<double>(size[0])), 2);
  }
}

TEST(SoftmaxAttentionTest, GroupedHeads) {
  const int64_t heads[][2] = {{1, 1}, {4, 1}, {6, 2}, {6, 3}, {40, 1}};
  for (const auto& h : heads) {
    SCOPED_TRACE(std::to_string(h[0]) + " over " + std::to_string(h[1]));
    ExpectMatchesReference({{0, 2, 0, 150}, {2, 66, 20, 130}, {68, 70, 0, 70}},
                           {138, 150, h[0], h[1], 8, 16}, 0.4, 2);
  }
}

TEST(SoftmaxAttentionTest, ManyColumnsAndChunks) {
  // Longer than a column of the backward pass, a unit of the forward pass and a chunk of few
  // queries.
  ExpectMatchesReference({{0, 1100, 0, 1100}}, {1100, 1100, 1, 1, 32, 32}, 0.2, 3);
  ExpectMatchesReference({{0, 3, 0, 4500}}, {3, 4500, 2, 1, 32, 32}, 0.2, 3);
}

TEST(SoftmaxAttentionTest, ScalesOfAnySign) {
  for (double scale : {0.0, -0.7, 3.0}) {
    SCOPED_TRACE(scale);
    ExpectMatchesReference({{0, 2, 0, 40}, {2, 40, 0, 40}}, {42, 40, 1, 1, 16, 16}, scale, 1);
  }
}

TEST(SoftmaxAttentionTest, QueriesWithoutKeys) {
  const AttentionShape shape{300, 40, 2, 1, 16, 16};
  const std::vector<AttentionTask> tasks = {
      {0, 200, 0, 33}, {200, 5, 0, 0}, {205, 3, 5, 1}, {208, 4, 0, 0}};
  ExpectMatchesReference(tasks, shape, 0.3, 2);
  TestContext test(1);
  AttentionData<float> data(shape);
  Forward(test.context, tasks, 0.3, data);
  for (int64_t row = 0; row < 167 * 2; ++row) {
    ASSERT_EQ(data.lse[row], -std::numeric_limits<float>::infinity());
    for (int64_t e = 0; e < 16; ++e) ASSERT_EQ(data.out[row * 16 + e], 0);
  }
  for (int64_t row : {400, 409, 410, 413, 416, 423}) {
    EXPECT_EQ(data.lse[row], -std::numeric_limits<float>::infinity()) << row;
    EXPECT_EQ(data.out[row * 16], 0) << row;
  }
}

TEST(SoftmaxAttentionTest, EmptyLists) {
  const AttentionShape shape{4, 4, 1, 1, 8, 8};
  TestContext test(2);
  AttentionData<float> data(shape);
  const AttentionData<float> before = data;
  for (const std::vector<AttentionTask>& tasks :
       {std::vector<AttentionTask>{}, std::vector<AttentionTask>{{2, 0, 0, 4}, {4, 0, 4, 0}}}) {
    Forward(test.context, tasks, 1, data);
    Backward(test.context, tasks, 1, data);
  }
  EXPECT_TRUE(SameBits(data.out, before.out) && SameBits(data.lse, before.lse));
  EXPECT_TRUE(SameBits(data.dq, before.dq) && SameBits(data.dk, before.dk));
}

// Random lists: keys shared by several tasks, prefixes, short and long, rows left out.
TEST(SoftmaxAttentionTest, RandomTaskLists) {
  std::mt19937 random(7);
  const auto uniform = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int round = 0; round < 40; ++round) {
    SCOPED_TRACE(round);
    AttentionShape shape;
    shape.num_kv_heads = uniform(1, 3);
    shape.num_heads = shape.num_kv_heads * uniform(1, 3);
    shape.head_size = uniform(1, 40);
    shape.value_size = uniform(1, 40);
    shape.kv_rows = uniform(1, 200);
    std::vector<AttentionTask> tasks;
    for (int64_t t = uniform(0, 6); t > 0; --t) {
      AttentionTask task;
      shape.q_rows += uniform(0, 3);
      task.q_begin = shape.q_rows;
      task.q_len = uniform(0, 2) == 0 ? uniform(0, 5) : uniform(0, 140);
      shape.q_rows += task.q_len;
      task.kv_begin = uniform(0, shape.kv_rows);
      task.kv_len = uniform(0, shape.kv_rows - task.kv_begin);
      tasks.push_back(task);
    }
    ExpectMatchesReference(tasks, shape, 0.3, static_cast<int>(uniform(1, 3)));
  }
}

TEST(SoftmaxAttentionTest, GradientIsTheDerivative) {
  const AttentionShape shape{21, 30, 4, 2, 5, 3};
  const std::vector<AttentionTask> tasks = {{0, 9, 0, 9}, {9, 2, 4, 12}, {11, 10, 9, 21}};
  TestContext test(2);
  AttentionData<double> data(shape);
  std::fill(data.dk.begin(), data.dk.end(), 0);
  std::fill(data.dv.begin(), data.dv.end(), 0);
  Forward(test.context, tasks, 0.6, data);
  Backward(test.context, tasks, 0.6, data);
  const auto loss = [&] {
    AttentionData<double> at = data;
    Forward(test.context, tasks, 0.6, at);
    double sum = 0;
    for (size_t i = 0; i < at.out.size(); ++i) sum += at.out[i] * at.dout[i];
    return sum;
  };
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient) {
    std::vector<double> numeric;
    for (double& value : x) {
      const double saved = value, step = 1e-5;
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

TEST(SoftmaxAttentionTest, StridedRows) {
  // q, k and v as columns of one fused projection [T, (H + 2 G) D].
  const int64_t rows = 90, heads = 4, kv_heads = 2, size = 12,
                width = (heads + 2 * kv_heads) * size;
  const std::vector<AttentionTask> tasks = {{0, 3, 0, 60}, {3, 87, 0, 90}};
  AttentionData<float> dense({rows, rows, heads, kv_heads, size, size});
  std::fill(dense.dk.begin(), dense.dk.end(), 0.0f);
  std::fill(dense.dv.begin(), dense.dv.end(), 0.0f);
  std::vector<float> fused(rows * width), dfused(rows * width, 0.0f);
  for (int64_t t = 0; t < rows; ++t) {
    float* row = &fused[t * width];
    std::copy_n(&dense.q[t * heads * size], heads * size, row);
    std::copy_n(&dense.k[t * kv_heads * size], kv_heads * size, row + heads * size);
    std::copy_n(&dense.v[t * kv_heads * size], kv_heads * size, row + (heads + kv_heads) * size);
  }
  const auto part = [&](std::vector<float>& x, int64_t first, int64_t count) {
    return ViewOf(x, {rows, width}).Columns(first * size, (first + count) * size).SplitHeads(count);
  };
  TestContext test(2);
  AttentionData<float> strided = dense;
  SoftmaxAttentionForward(test.context, tasks, 0.3, part(fused, 0, heads),
                          part(fused, heads, kv_heads), part(fused, heads + kv_heads, kv_heads),
                          ViewOf(strided.out, strided.OutShape()),
                          ViewOf(strided.lse, strided.LseShape()));
  SoftmaxAttentionBackward(test.context, tasks, 0.3, part(fused, 0, heads),
                           part(fused, heads, kv_heads), part(fused, heads + kv_heads, kv_heads),
                           ViewOf(strided.out, strided.OutShape()),
                           ViewOf(strided.lse, strided.LseShape()),
                           ViewOf(strided.dout, strided.OutShape()), part(dfused, 0, heads),
                           part(dfused, heads, kv_heads), part(dfused, heads + kv_heads, kv_heads));
  Forward(test.context, tasks, 0.3, dense);
  Backward(test.context, tasks, 0.3, dense);
  EXPECT_TRUE(SameBits(dense.out, strided.out));
  for (int64_t t = 0; t < rows; ++t) {
    const float* row = &dfused[t * width];
    for (int64_t i = 0; i < heads * size; ++i) ASSERT_EQ(row[i], dense.dq[t * heads * size + i]);
    for (int64_t i = 0; i < kv_heads * size; ++i) {
      ASSERT_EQ(row[heads * size + i], dense.dk[t * kv_heads * size + i]);
      ASSERT_EQ(row[(heads + kv_heads) * size + i], dense.dv[t * kv_heads * size + i]);
    }
  }
}

TEST(SoftmaxAttentionTest, ThreadsDoNotChangeABit) {
  const AttentionShape shape{1700, 1600, 4, 2, 20, 24};
  const std::vector<AttentionTask> tasks = {{0, 1, 0, 1500},     {1, 900, 100, 1100},
                                            {901, 300, 0, 1400}, {1201, 400, 1200, 400},
                                            {1601, 4, 10, 300},  {1605, 95, 0, 20}};
  std::vector<AttentionData<float>> results;
  for (int threads : {1, 2, 3, 5}) {
    TestContext test(threads);
    results.emplace_back(shape);
    Forward(test.context, tasks, 0.2, results.back());
    Backward(test.context, tasks, 0.2, results.back());
  }
  for (const AttentionData<float>& x : results) {
    EXPECT_TRUE(SameBits(x.out, results[0].out));
    EXPECT_TRUE(SameBits(x.lse, results[0].lse));
    EXPECT_TRUE(SameBits(x.dq, results[0].dq));
    EXPECT_TRUE(SameBits(x.dk, results[0].dk));
    EXPECT_TRUE(SameBits(x.dv, results[0].dv));
  }
}

// A document computes the same bits alone as among others, wherever it lies.
TEST(SoftmaxAttentionTest, DocumentsAreApart) {
  const std::vector<int64_t> lengths = {130, 1, 257, 3, 64, 511};
  std::vector<int64_t> bounds = {0};
  for (int64_t length : lengths) bounds.push_back(bounds.back() + length);
  const int64_t rows = bounds.back(), heads = 4, kv_heads = 2, size = 24;
  TestContext test(2);
  AttentionData<float> packed({rows, rows, heads, kv_heads, size, size});
  std::fill(packed.dk.begin(), packed.dk.end(), 0.0f);
  std::fill(packed.dv.begin(), packed.dv.end(), 0.0f);
  const std::vector<AttentionTask> tasks = TasksOfDocuments(bounds);
  Forward(test.context, tasks, 0.2, packed);
  Backward(test.context, tasks, 0.2, packed);
  for (size_t i = 0; i < lengths.size(); ++i) {
    SCOPED_TRACE(i);
    AttentionData<float> alone({lengths[i], lengths[i], heads, kv_heads, size, size});
    const auto cut = [&](const std::vector<float>& x, int64_t width) {
      return std::vector<float>(x.begin() + bounds[i] * width, x.begin() + bounds[i + 1] * width);
    };
    alone.q = cut(packed.q, heads * size);
    alone.k = cut(packed.k, kv_heads * size);
    alone.v = cut(packed.v, kv_heads * size);
    alone.dout = cut(packed.dout, heads * size);
    std::fill(alone.dk.begin(), alone.dk.end(), 0.0f);
    std::fill(alone.dv.begin(), alone.dv.end(), 0.0f);
    const std::vector<AttentionTask> task = {{0, lengths[i], 0, lengths[i]}};
    Forward(test.context, task, 0.2, alone);
    Backward(test.context, task, 0.2, alone);
    EXPECT_TRUE(SameBits(alone.out, cut(packed.out, heads * size)));
    EXPECT_TRUE(SameBits(alone.lse, cut(packed.lse, heads)));
    EXPECT_TRUE(SameBits(alone.dq, cut(packed.dq, heads * size)));
    EXPECT_TRUE(SameBits(alone.dk, cut(packed.dk, kv_heads * size)));
    EXPECT_TRUE(SameBits(alone.dv, cut(packed.dv, kv_heads * size)));
  }
}

TEST(SoftmaxAttentionTest, LaterTokensDoNotChangeABitOfEarlierOutputs) {
  const int64_t length = 300, changed = 173, size = 32;
  TestContext test(2);
  AttentionData<float> before({length, length, 1, 1, size, size});
  AttentionData<float> after = before;
  for (int64_t i = changed * size; i < length * size; ++i) {
    after.q[i] *= 3, after.k[i] *= -5, after.v[i] += 7;
  }
  const std::vector<AttentionTask> tasks = {{0, length, 0, length}};
  Forward(test.context, tasks, 0.2, before);
  Forward(test.context, tasks, 0.2, after);
  EXPECT_EQ(std::memcmp(before.out.data(), after.out.data(), changed * size * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(before.lse.data(), after.lse.data(), changed * sizeof(float)), 0);
  EXPECT_NE(before.lse[changed], after.lse[changed]);
}

TEST(SoftmaxAttentionTest, SplitKeysMergeToTheWhole) {
  const AttentionShape shape{150, 400, 4, 2, 16, 16};
  TestContext test(2);
  AttentionData<double> whole(shape);
  Forward(test.context, {{0, 150, 0, 400}}, 0.4, whole);
  for (int64_t cut : {0, 1, 100, 249, 250, 251, 330, 400}) {
    SCOPED_TRACE(cut);
    // Query i sees 251 + i keys. Of the first `cut` keys it sees all below that: the queries that
    // see only a part of them form a triangle of their own.
    AttentionData<double> left(shape), right(shape);
    const OpContext& context = test.context;
    SetIdentityState(context, ViewOf(left.out, left.OutShape()), ViewOf(left.lse, left.LseShape()));
    SetIdentityState(context, ViewOf(right.out, right.OutShape()),
                     ViewOf(right.lse, right.LseShape()));
    std::vector<AttentionTask> tasks;
    const int64_t triangle = std::clamp<int64_t>(cut - 250, 0, 150);  // queries that end before cut
    if (triangle > 0) tasks.push_back({0, triangle, 0, 250 + triangle});
    for (int64_t i = triangle; i < 150; ++i) tasks.push_back({i, 1, 0, std::min(cut, 251 + i)});
    Forward(context, tasks, 0.4, left);
    Forward(context, {{0, 150, cut, 400 - cut}}, 0.4, right);
    MergeState(context, ViewOf(right.out, right.OutShape()), ViewOf(right.lse, right.LseShape()),
               ViewOf(left.out, left.OutShape()), ViewOf(left.lse, left.LseShape()));
    EXPECT_LT(RelativeError(left.out, whole.out), 1e-13);
    EXPECT_LT(RelativeError(left.lse, whole.lse), 1e-13);
  }
}

TEST(SoftmaxAttentionTest, NanReachesTheRowsThatUseIt) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t length = 200, size = 16;
  for (int64_t num_queries : {int64_t{1}, length}) {
    const std::vector<AttentionTask> tasks = {{0, num_queries, 0, length}};
    const AttentionShape shape{num_queries, length, 1, 1, size, size};
    TestContext test(1);
    AttentionData<float> bad_q(shape), bad_k(shape), bad_v(shape);
    const int64_t key = 90, query = num_queries / 2;
    bad_q.q[query * size + 3] = nan;
    bad_k.k[key * size + 3] = nan;
    bad_v.v[key * size + 3] = nan;
    for (AttentionData<float>* data : {&bad_q, &bad_k, &bad_v})
      Forward(test.context, tasks, 1, *data);
    for (int64_t e = 0; e < size; ++e) EXPECT_TRUE(std::isnan(bad_q.out[query * size + e]));
    for (int64_t i = 0; i < num_queries; ++i) {
      EXPECT_EQ(std::isnan(bad_q.lse[i]), i == query) << i;
      const bool sees = length - num_queries + 1 + i > key;
      EXPECT_EQ(std::isnan(bad_k.lse[i]), sees) << i;
      EXPECT_EQ(std::isnan(bad_k.out[i * size]), sees) << i;
      if (sees) {
        EXPECT_TRUE(std::isnan(bad_v.out[i * size + 3])) << i;
      }
      EXPECT_FALSE(std::isnan(bad_v.out[i * size + 4])) << i;
    }
    Backward(test.context, tasks, 1, bad_k);
    EXPECT_TRUE(std::isnan(bad_k.dq[(num_queries - 1) * size]));
    EXPECT_TRUE(std::isnan(bad_k.dv[0]));
  }
}

TEST(SoftmaxAttentionTest, LargeScoresDoNotOverflow) {
  for (int64_t num_queries : {2, 80}) {
    const AttentionShape shape{num_queries, 80, 1, 1, 8, 8};
    const std::vector<AttentionTask> tasks = {{0, num_queries, 0, 80}};
    TestContext test(1);
    AttentionData<float> data(shape);
    AttentionData<double> exact(shape);
    for (float& x : data.q) x *= 1000;
    for (double& x : exact.q) x *= 1000;
    Forward(test.context, tasks, 1, data);
    ReferenceForward(tasks, 1, false, exact);
    EXPECT_LT(RelativeError(data.lse, exact.lse), 1e-6);
    for (float x : data.out) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST(SoftmaxAttentionDeathTest, TasksOutsideTheTensorsAreRefused) {
  const AttentionShape shape{4, 4, 1, 1, 8, 8};
  AttentionData<float> data(shape);
  const auto run = [&](AttentionTask task) {
    TestContext test(1);
    Forward(test.context, {task}, 1, data);
  };
  EXPECT_DEATH(run({1, 4, 0, 4}), "of 4");
  EXPECT_DEATH(run({0, 4, 2, 3}), "of 4");
  EXPECT_DEATH(run({-1, 1, 0, 1}), "queries -1");
}

}  // namespace
}  // namespace evenkeel
