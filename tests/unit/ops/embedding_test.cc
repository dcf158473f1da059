#include "runtime/ops/embedding.h"

#include "tests/unit/ops/op_fixture.h"

namespace evenkeel {
namespace {

TEST(EmbeddingTest, GathersAndScalesRows) {
  OpRunner runner(2);
  for (int64_t tokens : {0, 1, 77}) {
    const int64_t columns = 51;
    const int32_t vocabulary = 13;
    const auto table = RandomNormal(vocabulary * columns, 1);
    const auto ids = RandomTokens(tokens, vocabulary, 2);
    std::vector<double> y(static_cast<size_t>(tokens * columns)), expected(y.size());
    EmbeddingForward(runner.context(), ViewOf(table, {vocabulary, columns}), ids, 1.5,
                     ViewOf(y, {tokens, columns}));
    for (size_t i = 0; i < y.size(); ++i) {
      expected[i] = 1.5 * table[static_cast<size_t>(ids[i / 51]) * 51 + i % 51];
    }
    EXPECT_TRUE(SameBits(y, expected));
  }
}

TEST(EmbeddingTest, BackwardAddsRowsInTokenOrder) {
  const int64_t tokens = 400, columns = 101;
  const int32_t vocabulary = 7;  // every token occurs often
  const auto ids = RandomTokens(tokens, vocabulary, 2);
  const auto dy = RandomNormal<float>(tokens * columns, 3);
  const auto before = RandomNormal<float>(vocabulary * columns, 4);
  std::vector<float> expected = before;
  for (size_t t = 0; t < 400; ++t) {
    for (size_t j = 0; j < 101; ++j) {
      float& sum = expected[static_cast<size_t>(ids[t]) * 101 + j];
      sum = static_cast<float>(sum + 0.5 * dy[t * 101 + j]);  // 0.5: exact, fused or not
    }
  }
  ExpectSameOnAnyThreads(DType::kF32, [&](const OpContext& context) {
    auto dtable = before;
    EmbeddingBackward(context, ids, 0.5, ViewOf(dy, {tokens, columns}),
                      ViewOf(dtable, {vocabulary, columns}));
    EXPECT_TRUE(SameBits(dtable, expected));
    return dtable;
  });
}

TEST(EmbeddingTest, NoTokensLeaveTheGradient) {
  OpRunner runner(2);
  auto dtable = RandomNormal(20, 1);
  const auto before = dtable;
  std::vector<double> dy;
  EmbeddingBackward(runner.context(), {}, 1, ViewOf(dy, {0, 4}), ViewOf(dtable, {5, 4}));
  EXPECT_TRUE(SameBits(dtable, before));
}

}  // namespace
}  // namespace evenkeel
