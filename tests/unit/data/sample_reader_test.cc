#include "runtime/data/sample_reader.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/data/indexed_dataset_writer.h"
#include "tests/unit/data/temp_folder.h"

namespace evenkeel {
namespace {

constexpr int64_t kVocab = 1000;

// Token t of document d is 100 d + t, so that each names its place.
absl::StatusOr<IndexedDataset> MakeDataset(const TempFolder& folder,
                                           const std::vector<int64_t>& lengths) {
  auto writer = IndexedDatasetWriter::Create(folder.Path("d"), kVocab);
  if (!writer.ok()) return writer.status();
  for (size_t d = 0; d < lengths.size(); ++d) {
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < lengths[d]; ++t) {
      tokens.push_back(static_cast<int32_t>(100 * static_cast<int64_t>(d) + t));
    }
    if (absl::Status status = writer->AppendTokens(tokens); !status.ok()) return status;
    if (absl::Status status = writer->EndDocument(); !status.ok()) return status;
  }
  if (absl::Status status = writer->Finish({}); !status.ok()) return status;
  return IndexedDataset::Open(folder.Path("d"), kVocab);
}

TEST(AppendSample, TakesTargetsFromTheSameDocument) {
  const TempFolder folder;
  const auto dataset = MakeDataset(folder, {5, 1, 3});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  PackedBatch batch;
  ASSERT_TRUE(AppendSample(*dataset, {{0, 1, 2}, {1, 0, 1}}, &batch).ok());
  ASSERT_TRUE(AppendSample(*dataset, {{2, 0, 3}}, &batch).ok());
  const PackedBatch expected = {.tokens = {1, 2, 100, 200, 201, 202},
                                .targets = {2, 3, -1, 201, 202, -1},
                                .cu_seqlens = {0, 2, 3, 6},
                                .positions = {0, 1, 0, 0, 1, 2}};
  EXPECT_EQ(batch, expected);
  EXPECT_EQ(batch.num_valid(), 4);
  EXPECT_TRUE(batch.Validate(kVocab).ok());
  batch.Clear();
  EXPECT_EQ(batch, PackedBatch());
}

TEST(AppendSample, GivesEveryTargetOnceAnEpoch) {
  const TempFolder folder;
  const std::vector<int64_t> lengths = {37, 1, 2, 80, 13, 5, 64};
  const auto dataset = MakeDataset(folder, lengths);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  auto order = SampleOrder::Create(dataset->document_lengths(), 16, 3);
  const auto sequential = SequentialOrder::Create(dataset->document_lengths(), 16);
  for (const bool shuffled : {true, false}) {
    std::map<int32_t, int32_t> target_of;
    const int64_t samples = shuffled ? order->num_samples_per_epoch() : sequential->num_samples();
    for (int64_t i = 0; i < samples; ++i) {
      PackedBatch batch;
      const auto pieces = shuffled ? order->Sample(i) : sequential->Sample(i);
      ASSERT_TRUE(AppendSample(*dataset, pieces, &batch).ok());
      ASSERT_TRUE(batch.Validate(kVocab).ok()) << batch.Validate(kVocab);
      EXPECT_EQ(batch.num_pieces(), static_cast<int64_t>(pieces.size()));
      for (size_t t = 0; t < batch.tokens.size(); ++t) {
        EXPECT_TRUE(target_of.emplace(batch.tokens[t], batch.targets[t]).second);
      }
    }
    ASSERT_EQ(static_cast<int64_t>(target_of.size()), dataset->total_tokens());
    for (const auto& [token, target] : target_of) {
      const bool last = token % 100 + 1 == lengths[static_cast<size_t>(token / 100)];
      EXPECT_EQ(target, last ? kIgnoredTarget : token + 1);
    }
  }
}

TEST(AppendSample, ReportsATokenOutsideTheVocabulary) {
  const TempFolder folder;
  ASSERT_TRUE(MakeDataset(folder, {5}).ok());
  const auto dataset = IndexedDataset::Open(folder.Path("d"), 4);
  PackedBatch batch;
  EXPECT_TRUE(AppendSample(*dataset, {{0, 0, 3}}, &batch).ok());
  EXPECT_FALSE(AppendSample(*dataset, {{0, 0, 4}}, &batch).ok()) << "4 is a target there";
  EXPECT_TRUE(batch.Validate(4).ok());
}

TEST(PackedBatch, ValidateFindsEveryKindOfDamage) {
  PackedBatch good;
  EXPECT_TRUE(good.Validate(10).ok()) << "an empty batch is one";
  good.AppendPiece({1, 2, 3}, {2, 3, -1});
  good.AppendPiece({}, {});
  good.AppendPiece({4}, {5});
  ASSERT_TRUE(good.Validate(10).ok());
  EXPECT_EQ(good.num_pieces(), 2);
  const auto broken = [&](auto damage) {
    PackedBatch batch = good;
    damage(batch);
    return !batch.Validate(10).ok();
  };
  EXPECT_TRUE(broken([](auto& b) { b.targets.pop_back(); }));
  EXPECT_TRUE(broken([](auto& b) { b.positions.push_back(0); }));
  EXPECT_TRUE(broken([](auto& b) { b.cu_seqlens.clear(); }));
  EXPECT_TRUE(broken([](auto& b) { b.cu_seqlens.pop_back(); }));
  EXPECT_TRUE(broken([](auto& b) { b.cu_seqlens = {0, 3, 3, 4}; }));
  EXPECT_TRUE(broken([](auto& b) { b.cu_seqlens = {0, 100, 4}; }));
  EXPECT_TRUE(broken([](auto& b) { b.cu_seqlens = {0, -1, 4}; }));
  EXPECT_TRUE(broken([](auto& b) { b.cu_seqlens[0] = 1; }));
  EXPECT_TRUE(broken([](auto& b) { b.positions[1] = 0; }));
  EXPECT_TRUE(broken([](auto& b) { b.positions[3] = 3; }));
  EXPECT_TRUE(broken([](auto& b) { b.tokens[0] = 10; }));
  EXPECT_TRUE(broken([](auto& b) { b.tokens[0] = -1; }));
  EXPECT_TRUE(broken([](auto& b) { b.targets[0] = 10; }));
  EXPECT_TRUE(broken([](auto& b) { b.targets[0] = -2; }));
}

}  // namespace
}  // namespace evenkeel
