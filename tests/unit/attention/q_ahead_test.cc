// Tasks whose last query is past their last key: AttentionTask::q_ahead.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attention/block_attention.h"
#include "attention/merge_state.h"
#include "attention/softmax_attention.h"
#include "gtest/gtest.h"
#include "tests/unit/attention/softmax_reference.h"

namespace evenkeel {
namespace {

using Tasks = std::vector<AttentionTask>;

class Uniform {
 public:
  explicit Uniform(unsigned seed) : random_(seed) {}
  int64_t operator()(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

 private:
  std::mt19937 random_;
};

template <typename T>
void Forward(const OpContext& context, const Tasks& tasks, double scale, bool relu,
             AttentionData<T>& data) {
  const TensorView q = ViewOf(data.q, data.QShape()), k = ViewOf(data.k, data.KShape()),
                   v = ViewOf(data.v, data.VShape()), out = ViewOf(data.out, data.OutShape());
  if (relu) {
    ReluBlockAttentionForward(context, tasks, scale, q, k, v, out);
  } else {
    SoftmaxAttentionForward(context, tasks, scale, q, k, v, out, ViewOf(data.lse, data.LseShape()));
  }
}

template <typename T>
void Backward(const OpContext& context, const Tasks& tasks, double scale, bool relu,
              AttentionData<T>& data) {
  const TensorView q = ViewOf(data.q, data.QShape()), k = ViewOf(data.k, data.KShape()),
                   v = ViewOf(data.v, data.VShape()), dout = ViewOf(data.dout, data.OutShape()),
                   dq = ViewOf(data.dq, data.QShape()), dk = ViewOf(data.dk, data.KShape()),
                   dv = ViewOf(data.dv, data.VShape());
  if (relu) {
    ReluBlockAttentionBackward(context, tasks, scale, q, k, v, dout, dq, dk, dv);
  } else {
    SoftmaxAttentionBackward(context, tasks, scale, q, k, v, ViewOf(data.out, data.OutShape()),
                             ViewOf(data.lse, data.LseShape()), dout, dq, dk, dv);
  }
}

// Sets dk and dv to zero at the tasks' keys: ReLU attention writes them, the reference adds.
template <typename T>
void ClearKeyGradients(const Tasks& tasks, AttentionData<T>& data) {
  const int64_t k_row = data.shape.num_kv_heads * data.shape.head_size;
  const int64_t v_row = data.shape.num_kv_heads * data.shape.value_size;
  for (const AttentionTask& task : tasks) {
    std::fill_n(data.dk.begin() + task.kv_begin * k_row, task.kv_len * k_row, T{0});
    std::fill_n(data.dv.begin() + task.kv_begin * v_row, task.kv_len * v_row, T{0});
  }
}

// Forward and backward in float64 and float32 against the plain loops in float64.
void ExpectMatchesReference(const Tasks& tasks, const AttentionShape& shape, bool relu,
                            int threads) {
  constexpr double kScale = 0.3;
  TestContext test(threads);
  AttentionData<double> expected(shape), actual(shape);
  AttentionData<float> single(shape);
  if (relu) ClearKeyGradients(tasks, expected);
  ReferenceForward(tasks, kScale, relu, expected);
  ReferenceBackward(tasks, kScale, relu, expected);
  Forward(test.context, tasks, kScale, relu, actual);
  Forward(test.context, tasks, kScale, relu, single);
  Backward(test.context, tasks, kScale, relu, actual);
  Backward(test.context, tasks, kScale, relu, single);
  const auto expect_close = [](const std::vector<double>& x, const std::vector<float>& y,
                               const std::vector<double>& exact, const char* name) {
    EXPECT_LT(RelativeError(x, exact), 1e-12) << name;
    EXPECT_LT(RelativeError(y, exact), 5e-6) << name;
  };
  expect_close(actual.out, single.out, expected.out, "out");
  expect_close(actual.lse, single.lse, expected.lse, "lse");
  expect_close(actual.dq, single.dq, expected.dq, "dq");
  expect_close(actual.dk, single.dk, expected.dk, "dk");
  expect_close(actual.dv, single.dv, expected.dv, "dv");
  EXPECT_EQ(test.arena.bytes_in_use(), 0);
}

// A q_ahead of each kind: none, a few, about as many as there are queries or keys, huge.
int64_t RandomAhead(Uniform& uniform, int64_t q_len, int64_t kv_len) {
  switch (uniform(0, 4)) {
    case 0:
      return 0;
    case 1:
      return uniform(1, 5);
    case 2:
      return uniform(0, q_len + 2);
    case 3:
      return uniform(0, q_len + kv_len);
    default:
      return std::numeric_limits<int64_t>::max();
  }
}

TEST(QAheadTest, PairsAreCounted) {
  for (int64_t q_len = 0; q_len < 6; ++q_len) {
    for (int64_t kv_len = 0; kv_len < 6; ++kv_len) {
      for (int64_t ahead : {0, 1, 2, 3, 4, 5, 6, 7, 100}) {
        const AttentionTask task = {0, q_len, 0, kv_len, ahead};
        int64_t pairs = 0;
        for (int64_t i = 0; i < q_len; ++i) {
          const int64_t seen = NumKeysSeen(task, i);
          pairs += seen;
          EXPECT_EQ(std::clamp<int64_t>(i + 1 + DiagonalOffset(task), 0, kv_len), seen);
        }
        EXPECT_EQ(NumPairs(task), pairs) << q_len << " " << kv_len << " " << ahead;
      }
    }
  }
  EXPECT_EQ(NumPairs({0, 7, 0, 5, std::numeric_limits<int64_t>::max()}), 35);
}

TEST(QAheadTest, RandomTaskLists) {
  Uniform uniform(17);
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    const bool relu = round % 3 == 2;
    AttentionShape shape;
    shape.num_kv_heads = uniform(1, 3);
    shape.num_heads = shape.num_kv_heads * (relu ? 1 : uniform(1, 3));
    shape.head_size = uniform(1, 40);
    shape.value_size = uniform(1, 40);
    shape.kv_rows = uniform(1, 200);
    Tasks tasks;
    for (int64_t t = uniform(1, 6); t > 0; --t) {
      AttentionTask task;
      shape.q_rows += uniform(0, 3);
      task.q_begin = shape.q_rows;
      task.q_len = uniform(0, 2) == 0 ? uniform(0, 5) : uniform(0, 140);
      shape.q_rows += task.q_len;
      task.kv_begin = uniform(0, shape.kv_rows);
      task.kv_len = uniform(0, shape.kv_rows - task.kv_begin);
      if (uniform(0, 3) == 0) task.kv_len = std::min<int64_t>(task.kv_len, 9);
      task.q_ahead = RandomAhead(uniform, task.q_len, task.kv_len);
      tasks.push_back(task);
    }
    ExpectMatchesReference(tasks, shape, relu, static_cast<int>(uniform(1, 3)));
  }
}

// Longer than a column of the backward pass, a block of keys and a chunk of few queries.
TEST(QAheadTest, LongTasks) {
  ExpectMatchesReference({{0, 300, 0, 1100, 150}}, {300, 1100, 1, 1, 24, 24}, false, 3);
  ExpectMatchesReference({{0, 700, 3, 131, 699}}, {700, 140, 2, 1, 16, 8}, false, 2);
  ExpectMatchesReference({{0, 700, 3, 131, 400}}, {700, 140, 2, 1, 16, 8}, false, 2);
  ExpectMatchesReference({{0, 4, 0, 1500, 2}, {4, 1, 7, 1030, 9}}, {5, 1500, 2, 1, 32, 32}, false,
                         2);
}

// Padding must not pose as keys of score 0: the weights of real keys would underflow beside them.
TEST(QAheadTest, VeryLowScores) {
  for (int64_t q_len : {3, 40}) {
    for (int64_t kv_len : {1, 3, 63, 129}) {
      const AttentionShape shape{q_len, kv_len + 20, 1, 1, 4, 4};
      const Tasks tasks = {{0, q_len, 0, kv_len, q_len}};
      TestContext test(1);
      AttentionData<double> expected(shape), actual(shape);
      for (AttentionData<double>* data : {&expected, &actual}) {
        for (double& x : data->q) x = -40 + std::abs(x);
        for (double& x : data->k) x = 40 - std::abs(x);
      }
      ReferenceForward(tasks, 1, false, expected);
      Forward(test.context, tasks, 1, false, actual);
      EXPECT_LT(RelativeError(actual.out, expected.out), 1e-10) << q_len << " " << kv_len;
      EXPECT_LT(RelativeError(actual.lse, expected.lse), 1e-12);
    }
  }
}

// What lies past a task's last key stays outside, forward and backward.
TEST(QAheadTest, KeysPastTheEndAreNotTouched) {
  for (const bool relu : {false, true}) {
    for (int64_t q_len : {2, 70}) {
      const AttentionShape shape{q_len, 100, 2, 2, 12, 20};
      const Tasks tasks = {{0, q_len, 10, 53, q_len}};
      TestContext test(2);
      AttentionData<double> clean(shape), dirty(shape);
      for (int64_t row = 0; row < 100; ++row) {
        if (row >= 10 && row < 63) continue;
        std::fill_n(dirty.k.begin() + row * 24, 24, std::numeric_limits<double>::quiet_NaN());
        std::fill_n(dirty.v.begin() + row * 40, 40, std::numeric_limits<double>::quiet_NaN());
      }
      for (AttentionData<double>* data : {&clean, &dirty}) {
        Forward(test.context, tasks, 0.2, relu, *data);
        Backward(test.context, tasks, 0.2, relu, *data);
      }
      EXPECT_EQ(clean.out, dirty.out);
      EXPECT_EQ(clean.dq, dirty.dq);
      EXPECT_EQ(clean.dk, dirty.dk);
      EXPECT_EQ(clean.dv, dirty.dv);
    }
  }
}

// Bounds of up to `pieces` pieces of [0, length), some of them empty.
std::vector<int64_t> RandomCuts(Uniform& uniform, int64_t length, int64_t pieces) {
  std::vector<int64_t> cuts = {0, length};
  for (int64_t i = 1; i < pieces; ++i) cuts.push_back(uniform(0, length));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

// A document's queries and keys, cut apart at random: for each piece of keys one list of tasks.
// Partial results fold in key order to those of the whole, and gradients add up to its gradients.
TEST(QAheadTest, PiecesOfADocumentFoldToTheWhole) {
  Uniform uniform(5);
  for (int round = 0; round < 20; ++round) {
    SCOPED_TRACE(round);
    const int64_t length = uniform(1, 300);
    const AttentionShape shape{length, length, 4, 2, 12, 16};
    TestContext test(static_cast<int>(uniform(1, 3)));
    const OpContext& context = test.context;
    AttentionData<double> whole(shape), folded(shape);
    const Tasks document = {{0, length, 0, length}};
    Forward(context, document, 0.4, false, whole);
    Backward(context, document, 0.4, false, whole);

    const std::vector<int64_t> q_cuts = RandomCuts(uniform, length, uniform(1, 5));
    const std::vector<int64_t> k_cuts = RandomCuts(uniform, length, uniform(1, 5));
    std::vector<Tasks> lists;
    int64_t pairs = 0;
    for (size_t c = 1; c < k_cuts.size(); ++c) {
      Tasks tasks;
      for (size_t r = 1; r < q_cuts.size(); ++r) {
        const int64_t q_end = q_cuts[r], kv_end = std::min(k_cuts[c], q_end);
        if (kv_end <= k_cuts[c - 1]) continue;
        tasks.push_back({q_cuts[r - 1], q_end - q_cuts[r - 1], k_cuts[c - 1],
                         kv_end - k_cuts[c - 1], q_end - kv_end});
        pairs += NumPairs(tasks.back());
      }
      lists.push_back(tasks);
    }
    EXPECT_EQ(pairs, NumPairs(document[0]));

    SetIdentityState(context, ViewOf(folded.out, folded.OutShape()),
                     ViewOf(folded.lse, folded.LseShape()));
    for (const Tasks& tasks : lists) {
      AttentionData<double> part(shape);
      SetIdentityState(context, ViewOf(part.out, part.OutShape()),
                       ViewOf(part.lse, part.LseShape()));
      Forward(context, tasks, 0.4, false, part);
      MergeState(context, ViewOf(part.out, part.OutShape()), ViewOf(part.lse, part.LseShape()),
                 ViewOf(folded.out, folded.OutShape()), ViewOf(folded.lse, folded.LseShape()));
    }
    EXPECT_LT(RelativeError(folded.out, whole.out), 1e-12);
    EXPECT_LT(RelativeError(folded.lse, whole.lse), 1e-12);

    std::vector<double> dq(folded.dq.size(), 0.0);
    for (const Tasks& tasks : lists) {
      std::fill(folded.dq.begin(), folded.dq.end(), 0.0);
      Backward(context, tasks, 0.4, false, folded);
      for (size_t i = 0; i < dq.size(); ++i) dq[i] += folded.dq[i];
    }
    EXPECT_LT(RelativeError(dq, whole.dq), 1e-12);
    EXPECT_LT(RelativeError(folded.dk, whole.dk), 1e-12);
    EXPECT_LT(RelativeError(folded.dv, whole.dv), 1e-12);
  }
}

TEST(QAheadDeathTest, QueriesBehindTheirKeysAreRefused) {
  AttentionData<float> data({4, 4, 1, 1, 8, 8});
  const auto run = [&] {
    TestContext test(1);
    Forward(test.context, {{0, 4, 0, 4, -1}}, 1, false, data);
  };
  EXPECT_DEATH(run(), "-1 ahead");
}

}  // namespace
}  // namespace evenkeel
