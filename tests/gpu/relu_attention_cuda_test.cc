// The ReLU attention kernels against the CPU's in float64.
#include "attention/kernels/cuda/relu_attention_cuda.h"

#include <random>

#include "attention/block_attention.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

struct Case {
  std::vector<AttentionTask> tasks;
  int heads, head_dim, value_dim;
  int64_t q_rows, kv_rows;
  double scale;
};

// A packed batch cut into blocks, with a few rows behind it that belong to nobody.
Case Blocks(const std::vector<int64_t>& cu_seqlens, int64_t block, int heads, int head_dim,
            int value_dim) {
  const int64_t rows = cu_seqlens.back() + 3;
  return {TasksOfBlocks(cu_seqlens, block), heads, head_dim, value_dim, rows, rows, 0.125};
}

// Rows of `tasks` are kept, the others poisoned: reading one would show, and so does writing one.
Bf16Matrix Named(Bf16Matrix m, const std::vector<AttentionTask>& tasks, bool keys) {
  std::vector<bool> named(static_cast<size_t>(m.rows), false);
  for (const AttentionTask& task : tasks) {
    const int64_t begin = keys ? task.kv_begin : task.q_begin;
    const int64_t end = begin + (keys ? task.kv_len : task.q_len);
    for (int64_t row = begin; row < end; ++row) named[static_cast<size_t>(row)] = true;
  }
  for (int64_t row = 0; row < m.rows; ++row) {
    if (named[static_cast<size_t>(row)]) continue;
    for (int64_t c = 0; c < m.columns; ++c) m.at(row, c) = kPoison;
  }
  return m;
}

// Rounding the weights and the result to bf16 costs a third of it.
constexpr double kBound = 6e-3;

class ReluAttentionCudaTest : public OpsCudaTest {
 protected:
  // `shape` says by its poison which rows are nobody's.
  static void Expect(const Bf16Matrix& got, const Bf16Matrix& shape,
                     const std::vector<double>& want, const char* what) {
    RelativeError error;
    int64_t touched = 0;
    for (int64_t r = 0; r < got.rows; ++r) {
      const bool named = shape.at(r, 0) != kPoison;
      for (int64_t c = 0; c < got.stride; ++c) {
        if (named && c < got.columns) {
          error.Add(FromBits(got.at(r, c)), want[static_cast<size_t>(r * got.columns + c)]);
        } else {
          touched += got.at(r, c) != kPoison;
        }
      }
    }
    EXPECT_LE(error.value(), kBound) << what;
    EXPECT_EQ(touched, 0) << what;
  }

  void Check(const Case& c, bool backward, uint64_t seed) {
    SCOPED_TRACE(std::to_string(c.tasks.size()) + " tasks, " + std::to_string(c.q_rows) + "/" +
                 std::to_string(c.kv_rows) + " rows, heads " + std::to_string(c.heads) + " of " +
                 std::to_string(c.head_dim) + "/" + std::to_string(c.value_dim));
    const int64_t qk = int64_t{c.heads} * c.head_dim, ve = int64_t{c.heads} * c.value_dim;
    const auto q = Named(Bf16Matrix::Random(c.q_rows, qk, qk + 8, seed), c.tasks, false);
    const auto k = Named(Bf16Matrix::Random(c.kv_rows, qk, qk + 16, seed + 1), c.tasks, true);
    const auto v = Named(Bf16Matrix::Random(c.kv_rows, ve, ve + 24, seed + 2), c.tasks, true);
    const auto dout = Named(Bf16Matrix::Random(c.q_rows, ve, ve, seed + 3), c.tasks, false);
    const DeviceArray<Bits> q_d(q.data), k_d(k.data), v_d(v.data), dout_d(dout.data);
    const ReluAttentionPlan plan =
        PlanReluAttention(c.tasks.data(), static_cast<int64_t>(c.tasks.size()));
    const DeviceArray<AttentionTask> tasks(plan.tasks);
    const DeviceArray<ReluTaskGroup> groups(plan.groups);
    const Shape q_shape{c.q_rows, c.heads, c.head_dim}, k_shape{c.kv_rows, c.heads, c.head_dim};
    const Shape v_shape{c.kv_rows, c.heads, c.value_dim}, out_shape{c.q_rows, c.heads, c.value_dim};
    std::vector<double> qs = q.Dense(), ks = k.Dense(), vs = v.Dense(), ds = dout.Dense();
    std::vector<Bits> first_out, first_dq, first_dk, first_dv;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<Bits> out(dout.data.size()), dq(q.data.size()), dk(k.data.size()),
          dv(v.data.size());
      ReluAttentionForwardParams f;
      f.tasks = tasks.data();
      f.num_tasks = static_cast<int64_t>(c.tasks.size());
      f.num_heads = c.heads;
      f.head_dim = c.head_dim;
      f.value_dim = c.value_dim;
      f.scale = static_cast<float>(c.scale);
      f.q = q_d.data();
      f.k = k_d.data();
      f.v = v_d.data();
      f.out = out.data();
      f.q_stride = q.stride;
      f.k_stride = k.stride;
      f.v_stride = v.stride;
      f.out_stride = dout.stride;
      ASSERT_EQ(LaunchReluAttentionForward(f, nullptr), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const Bf16Matrix got = Downloaded(out, dout);
      if (run == 0) {
        std::vector<double> want(ds.size());
        ReluBlockAttentionForward(context_, c.tasks, c.scale, F64(qs, q_shape), F64(ks, k_shape),
                                  F64(vs, v_shape), F64(want, out_shape));
        Expect(got, dout, want, "out");
        first_out = got.data;
      } else {
        EXPECT_TRUE(SameBits(got.data, first_out));
      }
      if (!backward) continue;
      ReluAttentionBackwardParams b;
      b.forward = f;
      b.groups = groups.data();
      b.num_groups = static_cast<int64_t>(plan.groups.size());
      b.dout = dout_d.data();
      b.dq = dq.data();
      b.dk = dk.data();
      b.dv = dv.data();
      b.dout_stride = dout.stride;
      b.dq_stride = q.stride;
      b.dk_stride = k.stride;
      b.dv_stride = v.stride;
      ASSERT_EQ(LaunchReluAttentionBackward(b, nullptr), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const Bf16Matrix got_dq = Downloaded(dq, q), got_dk = Downloaded(dk, k);
      const Bf16Matrix got_dv = Downloaded(dv, v);
      if (run == 0) {
        std::vector<double> want_dq(qs.size()), want_dk(ks.size()), want_dv(vs.size());
        ReluBlockAttentionBackward(context_, c.tasks, c.scale, F64(qs, q_shape), F64(ks, k_shape),
                                   F64(vs, v_shape), F64(ds, out_shape), F64(want_dq, q_shape),
                                   F64(want_dk, k_shape), F64(want_dv, v_shape));
        Expect(got_dq, q, want_dq, "dq");
        Expect(got_dk, k, want_dk, "dk");
        Expect(got_dv, v, want_dv, "dv");
        first_dq = got_dq.data;
        first_dk = got_dk.data;
        first_dv = got_dv.data;
      } else {
        EXPECT_TRUE(SameBits(got_dq.data, first_dq));
        EXPECT_TRUE(SameBits(got_dk.data, first_dk));
        EXPECT_TRUE(SameBits(got_dv.data, first_dv));
      }
    }
  }
};

TEST_F(ReluAttentionCudaTest, OneTaskOfAnyLength) {
  uint64_t seed = 1;
  for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 256, 300}) {
    Check(Blocks({0, n}, n, 2, 64, 64), true, seed += 10);
  }
}

TEST_F(ReluAttentionCudaTest, EveryHeadSize) {
  uint64_t seed = 1000;
  for (const int d : {8, 24, 64, 72, 96, 128, 136, 192, 256}) {
    Check(Blocks({0, 150}, 64, 1, d, d), true, seed += 10);
    Check(Blocks({0, 150}, 100, 1, d, d), true, seed += 10);
  }
  Check(Blocks({0, 150}, 100, 2, 256, 128), true, seed += 10);
  Check(Blocks({0, 150}, 100, 2, 40, 112), true, seed += 10);
}

TEST_F(ReluAttentionCudaTest, BlocksOfPackedDocuments) {
  Check(Blocks({0, 1, 70, 333, 461, 1000}, 64, 8, 64, 64), true, 2000);
  Check(Blocks({0, 5, 9, 12, 200, 456}, 128, 3, 128, 128), true, 2010);
  Check(Blocks({0, 700, 1100}, 256, 2, 96, 96), true, 2020);
}

// Queries at the end of their keys, queries without keys and keys without queries.
TEST_F(ReluAttentionCudaTest, LengthsThatDiffer) {
  for (const int d : {64, 256}) {
    Case c{{{0, 3, 0, 60}, {3, 70, 60, 200}, {80, 90, 260, 10}, {170, 20, 270, 15}},
           2,
           d,
           d,
           400,
           600,
           0.25};
    c.tasks.push_back({190, 0, 285, 80});   // no query
    c.tasks.push_back({200, 100, 370, 0});  // no key
    c.tasks.push_back({300, 1, 400, 129});
    c.tasks.push_back({301, 65, 530, 64});
    Check(c, true, 3000);
  }
}

TEST_F(ReluAttentionCudaTest, QueriesAheadOfTheirKeys) {
  for (const int d : {64, 128, 256}) {
    Case c{{{0, 3, 0, 60, 3}, {3, 70, 60, 200, 30}, {80, 90, 260, 10, 89}, {170, 20, 270, 15, 2}},
           2,
           d,
           d,
           500,
           700,
           0.25};
    c.tasks.push_back({190, 0, 285, 80, 5});     // no query
    c.tasks.push_back({200, 100, 370, 0, 100});  // no key
    c.tasks.push_back({300, 1, 400, 129, int64_t{1} << 40});
    c.tasks.push_back({301, 65, 530, 64, 64});
    c.tasks.push_back({366, 130, 594, 65, 70});
    Check(c, true, 3500);
  }
}

// Decoding: one query of each sequence, or a few, asks for the keys of its block.
TEST_F(ReluAttentionCudaTest, DecodeSteps) {
  Case c{{}, 8, 64, 64, 40, 40 * 64, 0.125};
  for (int64_t i = 0; i < 40; ++i) c.tasks.push_back({i, 1, i * 64, 1 + i * 13 % 64});
  Check(c, false, 4000);
  // Tasks that read the same keys.
  Check({{{0, 4, 0, 200}, {4, 3, 0, 150}, {7, 1, 0, 1}}, 2, 128, 128, 8, 200, 0.1}, true, 4010);
}

// A rank's pieces of blocks that are cut over ranks share keys, and so may any tasks.
TEST_F(ReluAttentionCudaTest, TasksThatShareKeys) {
  Check({{{0, 17, 0, 17}, {17, 20, 0, 60}, {37, 9, 0, 33}, {46, 5, 60, 5}}, 2, 64, 64, 51, 65, 0.1},
        true, 5000);
  std::mt19937 random(7);
  for (uint64_t round = 0; round < 20; ++round) {
    const int dim = round % 5 == 0 ? 128 : 64;
    Case c{{}, 2, dim, dim, 0, 700, 0.2};
    for (int task = 0; task < 12; ++task) {
      const int64_t queries = random() % 140, keys = random() % 180;
      const int64_t first = static_cast<int64_t>(random() % 500);
      const int64_t ahead = random() % 3 == 0 ? random() % 150 : 0;
      c.tasks.push_back({c.q_rows, queries, first, keys, ahead});
      c.q_rows += queries;
    }
    Check(c, true, 5010 + 10 * round);
  }
}

TEST_F(ReluAttentionCudaTest, NothingToDoAndWhatItRefuses) {
  ReluAttentionBackwardParams b;
  b.forward.num_heads = 2;
  b.forward.head_dim = b.forward.value_dim = 64;
  EXPECT_EQ(LaunchReluAttentionForward(b.forward, nullptr), cudaSuccess);
  EXPECT_EQ(LaunchReluAttentionBackward(b, nullptr), cudaSuccess);
  b.forward.head_dim = 12;
  EXPECT_EQ(LaunchReluAttentionForward(b.forward, nullptr), cudaErrorInvalidValue);
  b.forward.head_dim = 264;
  EXPECT_EQ(LaunchReluAttentionBackward(b, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace evenkeel
