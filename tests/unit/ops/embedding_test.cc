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

// A table without a row for some of the tokens: what they would read and write lies before it.
TEST(EmbeddingTest, TokensWithoutARowAreZeroAndLeaveTheGradient) {
  const int64_t tokens = 130, columns = 37;
  const int32_t vocabulary = 5;
  auto ids = RandomTokens(tokens, vocabulary, 2);
  for (size_t t = 0; t < ids.size(); t += 3) ids[t] = kNoToken;
  const auto dy = RandomNormal(tokens * columns, 3);
  // Row 0 belongs to nobody: the table begins at row 1.
  const auto rows = RandomNormal((vocabulary + 1) * columns, 4);
  const auto table = ViewOf(rows, {vocabulary + 1, columns}).Rows(1, vocabulary + 1);
  std::vector<double> expected_y(dy.size()), expected = rows;
  for (size_t i = 0; i < dy.size(); ++i) {
    if (ids[i / 37] == kNoToken) continue;
    const size_t at = static_cast<size_t>(ids[i / 37] + 1) * 37 + i % 37;
    expected_y[i] = 2 * rows[at];
    expected[at] += 2 * dy[i];
  }
  ExpectSameOnAnyThreads(DType::kF64, [&](const OpContext& context) {
    std::vector<double> y(dy.size(), NAN);
    EmbeddingForward(context, table, ids, 2, ViewOf(y, {tokens, columns}));
    EXPECT_TRUE(SameBits(y, expected_y));
    auto gradient = rows;
    EmbeddingBackward(context, ids, 2, ViewOf(dy, {tokens, columns}),
                      ViewOf(gradient, {vocabulary + 1, columns}).Rows(1, vocabulary + 1));
    EXPECT_TRUE(SameBits(gradient, expected));
    return gradient;
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
