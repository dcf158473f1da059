// The softmax attention kernels against float64 loops on the host.
#include "tests/gpu/softmax_attention_check.h"

namespace evenkeel {
namespace {

using namespace softmax_attention_check;  // NOLINT(google-build-using-namespace)

class SoftmaxAttentionCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(SoftmaxAttentionCudaTest, OneDocumentOfAnyLength) {
  unsigned seed = 1;
  for (const int64_t n : {1, 2, 7, 16, 63, 64, 65, 127, 128, 129, 200, 257, 331}) {
    Check({2, 1, 128, 128, n, n}, {{0, n, 0, n}}, seed++);
  }
}

// At head size 256 tiles have 64 queries and 64 keys, and queries come in two stages but their
// gradients in one: one to seven tiles each way, whole and not.
TEST_F(SoftmaxAttentionCudaTest, OneDocumentOfAnyLengthWithWideHeads) {
  unsigned seed = 30;
  for (const int64_t n : {1, 2, 7, 16, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257, 400}) {
    Check({2, 1, 256, 256, n, n}, {{0, n, 0, n}}, seed++);
  }
}

TEST_F(SoftmaxAttentionCudaTest, EveryHeadSize) {
  unsigned seed = 100;
  for (const int dim : {8, 40, 64, 96, 128, 160, 192, 256}) {
    Check({2, 2, dim, dim, 300, 300}, {{0, 190, 0, 190}, {190, 110, 190, 110}}, seed++);
  }
  Check({3, 1, 64, 128, 150, 150}, {{0, 150, 0, 150}}, seed++);
  Check({2, 1, 192, 128, 150, 150}, {{0, 150, 0, 150}}, seed++);
}

TEST_F(SoftmaxAttentionCudaTest, DecodeSteps) {
  Check({8, 2, 128, 128, 5, 700},
        {{0, 1, 0, 300}, {1, 1, 300, 1}, {2, 1, 0, 700}, {4, 1, 301, 128}}, 200);
}

TEST_F(SoftmaxAttentionCudaTest, ShardsThatShareTheirPrefix) {
  // Out of order, ending at odd rows, with a gap of keys nobody reads.
  const std::vector<AttentionTask> tasks = {{0, 128, 0, 640},
                                            {128, 65, 0, 193},
                                            {193, 40, 700, 333},
                                            {300, 77, 0, 512},
                                            {377, 3, 13, 300}};
  for (const int dim : {64, 128, 256}) Check({4, 2, dim, dim, 400, 1100}, tasks, 300 + dim);
}

TEST_F(SoftmaxAttentionCudaTest, QueriesWithoutKeys) {
  for (const int dim : {64, 128, 256}) {
    Check({2, 1, dim, dim, 640, 100},
          {{0, 300, 0, 20}, {300, 10, 0, 0}, {310, 200, 20, 1}, {520, 0, 30, 50}}, 400 + dim);
  }
}

// A ring step below the diagonal, one across it, a diagonal that enters a tile from above and
// leaves it at the last key; keys end inside and at the end of tiles, and are shared.
TEST_F(SoftmaxAttentionCudaTest, QueriesAheadOfTheirKeys) {
  const std::vector<AttentionTask> tasks = {{0, 200, 0, 128, 200},   {200, 130, 0, 77, 129},
                                            {330, 100, 128, 64, 40}, {430, 300, 60, 100, 150},
                                            {730, 1, 5, 300, 3},     {731, 5, 0, 0, 4},
                                            {736, 90, 100, 1, 20},   {826, 140, 300, 257, 0}};
  for (const int dim : {64, 128, 256}) Check({4, 2, dim, dim, 970, 560}, tasks, 450 + dim);
  // A rectangle alone in its tiles: only the end of the keys is masked.
  for (const int64_t keys : {1, 63, 64, 65, 127, 128, 129, 191, 200}) {
    Check({2, 1, 128, 128, 150, keys}, {{0, 150, 0, keys, int64_t{1} << 40}}, 460 + keys);
    Check({2, 1, 256, 64, 70, keys}, {{0, 70, 0, keys, 69}}, 470 + keys);
  }
  // Rectangles and diagonals of many tasks over the same keys.
  std::vector<AttentionTask> shared;
  for (int i = 0; i < 60; ++i) shared.push_back({7 * i, 7, i % 5, 150 - i, i % 9});
  Check({2, 1, 64, 64, 420, 160}, shared, 480);
}

// Scores far below 0: what pads the last tile of keys must not pose as a key of score 0.
TEST_F(SoftmaxAttentionCudaTest, VeryLowScoresAheadOfTheirKeys) {
  for (const int dim : {64, 128, 256}) {
    const Shape shape{1, 1, dim, dim, 40, 100};
    const std::vector<AttentionTask> tasks = {{0, 40, 0, 75, 40}};
    std::mt19937 rng(490 + dim);
    Tensors t = RandomTensors(shape, tasks, rng);
    for (int64_t i = 0; i < 40; ++i) {
      for (int d = 0; d < dim; ++d) t.q[i * t.q_stride + d] = ToBits(-4.0);
    }
    for (int64_t j = 0; j < 75; ++j) {
      for (int d = 0; d < dim; ++d) t.k[j * t.k_stride + d] = ToBits(4.0);
    }
    const double scale = 1.0 / std::sqrt(dim);
    const Reference want = Compute(t, tasks, scale);
    for (const bool portable : {false, true}) {
      Results got;
      ASSERT_NO_FATAL_FAILURE(RunKernels(t, tasks, scale, portable, got));
      for (int64_t i = 0; i < 40; ++i) {
        EXPECT_NEAR(got.lse[i], want.lse[i], 1e-3) << dim;
        EXPECT_NEAR(FromBits(got.out[i * t.o_stride]), want.out[i * dim], 1e-2) << dim;
      }
    }
  }
}

// Blocks are worked on from the last to the first, so scores that fall with the key's position rise
// from block to block: what came before is multiplied at every block, at some, or at none.
TEST_F(SoftmaxAttentionCudaTest, ScoresThatRiseFromBlockToBlock) {
  constexpr int64_t kRows = 400;
  const std::vector<AttentionTask> tasks = {{0, kRows, 0, kRows}};
  for (const int dim : {64, 128, 256}) {
    for (const double rise : {-0.5, 0.02, 0.1, 0.5, 2.0}) {  // over 16 keys
      const Shape shape{2, dim == 128 ? 1 : 2, dim, dim, kRows, kRows};
      std::mt19937 rng(491 + dim);
      Tensors t = RandomTensors(shape, tasks, rng);
      for (int64_t i = 0; i < kRows; ++i) {
        const double score = rise * static_cast<double>(kRows - i) / 16;
        for (int64_t d = 0; d < 2 * dim; ++d) t.q[i * t.q_stride + d] = ToBits(2.0);
        for (int64_t d = 0; d < shape.kv_heads * dim; ++d) {
          t.k[i * t.k_stride + d] = ToBits(score / (2 * std::sqrt(dim)));
        }
      }
      const double scale = 1.0 / std::sqrt(dim);
      const Reference want = Compute(t, tasks, scale);
      for (const bool portable : {false, true}) {
        Results got;
        ASSERT_NO_FATAL_FAILURE(RunKernels(t, tasks, scale, portable, got));
        for (int64_t i = 0; i < 2 * kRows; ++i) {
          ASSERT_NEAR(got.lse[i], want.lse[i], 1e-3) << dim << " " << rise << " " << i;
        }
        for (int64_t i = 0; i < kRows; ++i) {
          for (int64_t d = 0; d < 2 * dim; ++d) {
            ASSERT_NEAR(FromBits(got.out[i * t.o_stride + d]), want.out[i * 2 * dim + d], 2e-2)
                << dim << " " << rise << " " << i << " " << d;
          }
        }
      }
    }
  }
}

TEST_F(SoftmaxAttentionCudaTest, ManySmallDocuments) {
  std::vector<AttentionTask> tasks;
  std::mt19937 rng(5);
  int64_t row = 0;
  for (int i = 0; i < 150; ++i) {
    const int64_t n = 1 + rng() % 9;
    tasks.push_back({row, n, row, n});
    row += n;
  }
  Check({4, 4, 64, 64, row, row}, tasks, 500);
  // All of them in one key tile's list, more than a warp looks at in one go.
  std::vector<AttentionTask> shared;
  for (int i = 0; i < 100; ++i) shared.push_back({2 * i, 2, i % 3, 150 - i});
  Check({2, 1, 128, 128, 200, 160}, shared, 501);
}

TEST_F(SoftmaxAttentionCudaTest, RandomTaskLists) {
  for (unsigned seed = 600; seed < 612; ++seed) {
    std::mt19937 rng(seed);
    const int dims[] = {64, 96, 128, 128, 256};
    const int dim = dims[rng() % 5];
    const int group = 1 + rng() % 3, kv_heads = 1 + rng() % 2;
    std::vector<AttentionTask> tasks;
    int64_t row = rng() % 5;
    const int64_t kv_rows = 600;
    for (int i = 0; i < 8; ++i) {
      const int64_t q_len = rng() % (i % 2 == 0 ? 200 : 20);
      const int64_t kv_begin = rng() % kv_rows;
      const int64_t kv_len = rng() % (kv_rows - kv_begin + 1);
      tasks.push_back({row, q_len, kv_begin, kv_len});
      row += q_len + rng() % 3;
    }
    Check({group * kv_heads, kv_heads, dim, dim, row, kv_rows}, tasks, seed);
    for (AttentionTask& task : tasks) {
      const int kind = rng() % 4;
      if (kind == 1) task.q_ahead = 1 + rng() % 5;
      if (kind == 2) task.q_ahead = rng() % 250;
      if (kind == 3) task.q_ahead = int64_t{1} << 50;
    }
    Check({group * kv_heads, kv_heads, dim, dim, row, kv_rows}, tasks, seed + 50);
  }
}

// The same for head sizes that are padded to 256, of keys and values apart, with grouped queries.
TEST_F(SoftmaxAttentionCudaTest, RandomTaskListsOfWideHeads) {
  for (unsigned seed = 900; seed < 912; ++seed) {
    std::mt19937 rng(seed);
    const int dims[][2] = {{256, 256}, {136, 136}, {192, 128}, {64, 256}, {256, 8}, {248, 200}};
    const auto& [head_dim, value_dim] = dims[seed % 6];
    const int group = 1 + rng() % 4, kv_heads = 1 + rng() % 2;
    std::vector<AttentionTask> tasks;
    int64_t row = rng() % 5;
    const int64_t kv_rows = 500;
    for (int i = 0; i < 7; ++i) {
      const int64_t q_len = rng() % (i % 2 == 0 ? 200 : 20);
      const int64_t kv_begin = rng() % kv_rows;
      AttentionTask task = {row, q_len, kv_begin,
                            static_cast<int64_t>(rng() % (kv_rows - kv_begin + 1))};
      const int kind = rng() % 4;
      if (kind == 1) task.q_ahead = 1 + rng() % 5;
      if (kind == 2) task.q_ahead = rng() % 250;
      if (kind == 3) task.q_ahead = int64_t{1} << 50;
      tasks.push_back(task);
      row += q_len + rng() % 3;
    }
    Check({group * kv_heads, kv_heads, head_dim, value_dim, row, kv_rows}, tasks, seed);
  }
}

// Several key tiles for every block that runs, most of them of one to three steps: shards with keys
// of their own, from one query to more than a tile, on prefixes from one key to many tiles, and
// shards that share theirs.
TEST_F(SoftmaxAttentionCudaTest, ManyShardsWithLongPrefixes) {
  const int64_t q_lens[] = {1, 7, 64, 3, 65, 16, 2, 130, 9, 1, 33, 5};
  const int64_t kv_lens[] = {1500, 1, 901, 1920, 77, 1281, 128, 650, 129, 1111, 1790, 64};
  std::vector<AttentionTask> tasks;
  int64_t row = 0, key = 0;
  for (int i = 0; i < 12; ++i) {
    const int64_t kv_len = std::max(kv_lens[i], q_lens[i]);
    tasks.push_back({row, q_lens[i], key, kv_len});
    row += q_lens[i];
    if (i % 3 == 0 && kv_len > 400) {
      tasks.push_back({row, 6, key + 100, kv_len - 300});
      row += 6;
    }
    key += kv_len;
  }
  Check({8, 8, 128, 128, row, key}, tasks, 800);
  Check({16, 4, 128, 128, row, key}, tasks, 801);
  Check({32, 4, 128, 128, row, key}, tasks, 802);
  Check({16, 4, 64, 64, row, key}, tasks, 803);
  Check({8, 2, 256, 256, row, key}, tasks, 804);
}

// The same with few pairs, for compute-sanitizer.
TEST_F(SoftmaxAttentionCudaTest, BlocksThatTakeSeveralKeyTiles) {
  const std::vector<AttentionTask> tasks = {
      {0, 1, 0, 2500}, {1, 3, 2500, 2400}, {4, 2, 4900, 2451}};
  Check({8, 8, 128, 128, 6, 7351}, tasks, 810);
  Check({8, 4, 64, 64, 6, 7351}, tasks, 811);
  Check({4, 2, 256, 256, 6, 7351}, tasks, 812);
}

TEST_F(SoftmaxAttentionCudaTest, LongRowsKeepTheirAccuracy) {
  Check({1, 1, 128, 128, 130, 6000}, {{0, 130, 0, 6000}}, 700);
}

TEST_F(SoftmaxAttentionCudaTest, RefusesSizesItWasNotBuiltFor) {
  SoftmaxForwardParams f;
  f.num_heads = f.num_kv_heads = 1;
  f.head_dim = f.value_dim = 264;
  EXPECT_EQ(LaunchSoftmaxForward(f, nullptr), cudaErrorInvalidValue);
  f.head_dim = f.value_dim = 60;
  EXPECT_EQ(LaunchSoftmaxForward(f, nullptr), cudaErrorInvalidValue);
  f.head_dim = f.value_dim = 64;
  f.q_stride = 68;
  EXPECT_EQ(LaunchSoftmaxForward(f, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace evenkeel
