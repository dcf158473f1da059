// Cross-entropy and the embedding table: what has a vocabulary.
#include <algorithm>
#include <limits>
#include <numeric>

#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/cuda/cross_entropy_cuda.h"
#include "runtime/ops/cuda/embedding_cuda.h"
#include "runtime/ops/embedding.h"
#include "tests/gpu/ops_cuda_fixture.h"

namespace evenkeel {
namespace {

class LossCudaTest : public OpsCudaTest {};

struct LossCase {
  int64_t tokens, vocab, padding;
};

const LossCase kLossCases[] = {{5, 32000, 0}, {3, 128256, 8}, {2, 262144, 0}, {17, 8, 0},
                               {1, 1, 0},     {4, 50257, 0},  {6, 1000, 4},   {9, 2056, 16}};

std::vector<int32_t> Targets(const LossCase& c) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < c.tokens; ++t) {
    targets.push_back(t % 4 == 1 ? kIgnoredTarget : static_cast<int32_t>(t * 7919 % c.vocab));
  }
  return targets;
}

TEST_F(LossCudaTest, Bf16LogitsEqualCpu) {
  for (const LossCase& c : kLossCases) {
    SCOPED_TRACE(c.vocab);
    const int64_t stride = c.vocab + c.padding;
    const double scale = 1.0 / 64;
    const auto z = Bf16Matrix::Random(c.tokens, c.vocab, stride, 1, 3.0);
    const std::vector<int32_t> targets = Targets(c);
    const DeviceArray<int32_t> targets_d(targets);
    std::vector<double> want = z.Dense(), want_loss(targets.size());
    CrossEntropyForwardBackward(context_, targets, scale, F64(want, {c.tokens, c.vocab}),
                                F64(want_loss, {static_cast<int64_t>(want_loss.size())}));
    std::vector<Bits> first;
    std::vector<float> first_loss;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<Bits> logits(z.data);
      const DeviceArray<float> losses(targets.size()), alone(targets.size());
      CrossEntropyParams p;
      p.tokens = c.tokens;
      p.vocab = c.vocab;
      p.logits = logits.data();
      p.stride = stride;
      p.targets = targets_d.data();
      p.scale = static_cast<float>(scale);
      p.losses = alone.data();
      p.losses_only = true;
      ASSERT_EQ(LaunchCrossEntropy(p, nullptr), cudaSuccess);
      EXPECT_TRUE(SameBits(logits.Download(), z.data)) << "the logits are only read";
      p.losses = losses.data();
      p.losses_only = false;
      ASSERT_EQ(LaunchCrossEntropy(p, nullptr), cudaSuccess);
      const Bf16Matrix got = Downloaded(logits, z);
      const std::vector<float> got_loss = losses.Download();
      if (run == 1) {
        EXPECT_TRUE(SameBits(got.data, first));
        EXPECT_TRUE(SameBits(got_loss, first_loss));
        continue;
      }
      first = got.data;
      first_loss = got_loss;
      ExpectRounded(got, want, "gradient");
      ExpectFloats(got_loss, want_loss, 1e-6, "loss");
      ExpectFloats(alone.Download(), want_loss, 1e-6, "loss alone");
    }
  }
}

TEST_F(LossCudaTest, FloatLogitsEqualCpu) {
  for (const LossCase& c : kLossCases) {
    SCOPED_TRACE(c.vocab);
    const std::vector<float> z = RandomFloats(c.tokens * c.vocab, 1, 3.0);
    const std::vector<int32_t> targets = Targets(c);
    std::vector<double> want = ToDouble(z), want_loss(targets.size());
    CrossEntropyForwardBackward(context_, targets, 0.5, F64(want, {c.tokens, c.vocab}),
                                F64(want_loss, {static_cast<int64_t>(want_loss.size())}));
    const DeviceArray<int32_t> targets_d(targets);
    const DeviceArray<float> logits(z), losses(targets.size());
    CrossEntropyParams p;
    p.tokens = c.tokens;
    p.vocab = c.vocab;
    p.float_logits = true;
    p.logits = logits.data();
    p.stride = c.vocab;
    p.targets = targets_d.data();
    p.scale = 0.5f;
    p.losses = losses.data();
    ASSERT_EQ(LaunchCrossEntropy(p, nullptr), cudaSuccess);
    ExpectFloats(logits.Download(), want, 2e-6, "gradient");
    ExpectFloats(losses.Download(), want_loss, 1e-6, "loss");
  }
}

// NaN, +inf and nothing but -inf have no softmax; some -inf among the rest are fine.
TEST_F(LossCudaTest, HostileLogits) {
  for (const int64_t vocab : {int64_t{64}, int64_t{33}}) {
    Bf16Matrix z = Bf16Matrix::Random(5, vocab, vocab, 1);
    const Bits infinity = ToBits(std::numeric_limits<double>::infinity());
    const Bits lowest = ToBits(-std::numeric_limits<double>::infinity());
    z.at(0, 7) = kPoison;
    z.at(1, 30) = infinity;
    for (int64_t i = 0; i < vocab; ++i) z.at(2, i) = lowest;
    for (int64_t i = 0; i < vocab / 2; ++i) z.at(3, i) = lowest;
    z.at(4, 2) = ToBits(3e38);
    const std::vector<int32_t> targets = {1, 1, 1, static_cast<int32_t>(vocab - 1), 2};
    const DeviceArray<Bits> logits(z.data);
    const DeviceArray<int32_t> targets_d(targets);
    const DeviceArray<float> losses(targets.size());
    CrossEntropyParams p;
    p.tokens = 5;
    p.vocab = vocab;
    p.logits = logits.data();
    p.stride = vocab;
    p.targets = targets_d.data();
    p.losses = losses.data();
    ASSERT_EQ(LaunchCrossEntropy(p, nullptr), cudaSuccess);
    const Bf16Matrix got = Downloaded(logits, z);
    const std::vector<float> loss = losses.Download();
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_TRUE(std::isnan(loss[static_cast<size_t>(row)])) << row;
      for (int64_t i = 0; i < vocab; ++i) EXPECT_TRUE(std::isnan(FromBits(got.at(row, i))));
    }
    std::vector<double> want = z.Dense(), want_loss(targets.size());
    CrossEntropyForwardBackward(context_, targets, 1.0, F64(want, {5, vocab}),
                                F64(want_loss, {static_cast<int64_t>(want_loss.size())}));
    EXPECT_NEAR(static_cast<double>(loss[3]), want_loss[3], 1e-5);
    EXPECT_EQ(FromBits(got.at(3, 0)), 0.0);
    EXPECT_EQ(loss[4], 0.0f);
    for (int64_t i = 0; i < vocab; ++i) EXPECT_EQ(FromBits(got.at(4, i)), 0.0);
  }
}

// A vocabulary in which one id takes most places, as padding or "the" does, and some tokens have no
// row.
std::vector<int32_t> SkewedTokens(int64_t n, int32_t vocab) {
  const Philox random(3, 9);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = random.Bits(static_cast<uint64_t>(i));
    tokens.push_back(bits % 3 == 0 ? vocab - 1
                                   : static_cast<int32_t>(bits / 3 % static_cast<uint64_t>(vocab)));
    if (i % 7 == 3) tokens.back() = kNoToken;
  }
  return tokens;
}

TEST(EmbeddingPlanTest, EveryTokenOnceInOrder) {
  for (const int32_t vocab : {1, 5, 3000, 5000000}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{65}, int64_t{3001}}) {
      const std::vector<int32_t> tokens = SkewedTokens(n, vocab);
      const EmbeddingPlan plan = PlanEmbeddingBackward(tokens.data(), n);
      const EmbeddingPlanView view = ViewOf(plan, plan.bytes.data());
      int32_t at = 0;
      for (int64_t i = 0; i < view.num_pieces; ++i) {
        const EmbeddingPiece& piece = view.pieces[i];
        ASSERT_EQ(piece.begin, at);
        ASSERT_GT(piece.count, 0);
        ASSERT_LE(piece.count, kEmbeddingPieceTokens);
        for (int32_t j = at; j < at + piece.count; ++j) {
          ASSERT_EQ(tokens[static_cast<size_t>(view.order[j])], piece.token);
          if (j > 0 && tokens[static_cast<size_t>(view.order[j - 1])] == piece.token) {
            ASSERT_LT(view.order[j - 1], view.order[j]);
          }
        }
        at += piece.count;
      }
      EXPECT_EQ(at, n - std::count(tokens.begin(), tokens.end(), kNoToken));
      int64_t slots = 0;
      for (int64_t i = 0; i < view.num_splits; ++i) {
        EXPECT_EQ(view.splits[i].slot, slots);
        EXPECT_GT(view.splits[i].count, 1);
        slots += view.splits[i].count;
      }
      EXPECT_EQ(slots, view.num_slots);
    }
  }
}

TEST(EmbeddingPlanTest, NoTokenWithARow) {
  const std::vector<int32_t> tokens(100, kNoToken);
  const EmbeddingPlan plan = PlanEmbeddingBackward(tokens.data(), 100);
  EXPECT_EQ(plan.num_pieces, 0);
  EXPECT_EQ(plan.num_slots, 0);
}

TEST_F(LossCudaTest, EmbeddingEqualsCpu) {
  for (const auto& [tokens, vocab, columns, padding] :
       {std::array<int64_t, 4>{700, 50, 256, 8}, std::array<int64_t, 4>{33, 7, 2048, 0},
        std::array<int64_t, 4>{1, 1, 8, 0}, std::array<int64_t, 4>{0, 4, 16, 0},
        std::array<int64_t, 4>{300, 9, 37, 1}, std::array<int64_t, 4>{20, 3, 4096, 0}}) {
    const int64_t stride = columns + padding;
    const std::vector<int32_t> ids = SkewedTokens(tokens, static_cast<int32_t>(vocab));
    const auto table = Bf16Matrix::Random(vocab, columns, columns, 1);
    const auto dy = Bf16Matrix::Random(tokens, columns, stride, 2);
    const double scale = 1.375;
    const DeviceArray<int32_t> ids_d(ids);
    const DeviceArray<Bits> table_d(table.data), dy_d(dy.data), y(dy.data.size());
    EmbeddingForwardParams f;
    f.tokens = tokens;
    f.columns = columns;
    f.ids = ids_d.data();
    f.table = table_d.data();
    f.scale = static_cast<float>(scale);
    f.y = y.data();
    f.y_stride = stride;
    ASSERT_EQ(LaunchEmbeddingForward(f, nullptr), cudaSuccess);
    std::vector<double> weights = table.Dense(), d = dy.Dense(), want(d.size());
    EmbeddingForward(context_, F64(weights, {vocab, columns}), ids, scale,
                     F64(want, {tokens, columns}));
    ExpectRounded(Downloaded(y, dy), want, "y");

    const EmbeddingPlan plan = PlanEmbeddingBackward(ids.data(), tokens);
    const DeviceArray<char> plan_d(plan.bytes);
    std::vector<float> first;
    for (int run = 0; run < 2; ++run) {
      const DeviceArray<float> dtable(
          std::vector<float>(static_cast<size_t>(vocab * columns), 0.125f));
      EmbeddingBackwardParams p;
      p.plan = ViewOf(plan, plan_d.data());
      const DeviceArray<std::byte> workspace(EmbeddingBackwardWorkspaceBytes(p.plan, columns));
      p.columns = columns;
      p.dy = dy_d.data();
      p.dy_stride = stride;
      p.scale = static_cast<float>(scale);
      p.dtable = dtable.data();
      p.workspace = workspace.data();
      ASSERT_EQ(LaunchEmbeddingBackward(p, nullptr), cudaSuccess);
      const std::vector<float> got = dtable.Download();
      std::vector<double> sum(static_cast<size_t>(vocab * columns), 0.125);
      EmbeddingBackward(context_, ids, scale, F64(d, {tokens, columns}),
                        F64(sum, {vocab, columns}));
      ExpectFloats(got, sum, 1e-6, "dtable");
      if (run == 1) {
        EXPECT_TRUE(SameBits(got, first));
      }
      first = got;
    }
  }
}

}  // namespace
}  // namespace evenkeel
