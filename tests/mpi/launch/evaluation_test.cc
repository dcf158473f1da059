// Perplexity must not depend on who computes it: the numbers of any number of ranks are compared,
// bit for bit, with those of one rank alone, and with a sum over the documents written out here.
#include "launch/evaluation.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/base/philox.h"
#include "runtime/comm/mpi_runtime.h"
#include "runtime/comm/self_communicator.h"
#include "runtime/data/indexed_dataset_writer.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::MakeModel;
using testing_support::TestRuntime;
using testing_support::TinyConfig;

constexpr int64_t kVocab = 23;

class EvaluationOverRanks : public testing::Test {
 protected:
  EvaluationOverRanks()
      : mpi_(*MpiRuntime::Create({.timeout_s = 20})),
        comm_(mpi_.world()),
        folder_(testing::TempDir() + "ek_evaluation_XXXXXX") {
    EXPECT_NE(mkdtemp(folder_.data()), nullptr);
    ModelConfig config = TinyConfig({LayerKind::kLightning, LayerKind::kSoftmax});
    config.num_layers = 2;
    model_ = MakeModel(runtime_, config);
    run_ = std::make_unique<PipelineRun>(runtime_.context, *model_, no_links_, MeshShape(), 0,
                                         runtime_.tracker);
  }
  ~EvaluationOverRanks() override { std::filesystem::remove_all(folder_); }

  // Every rank a replica.
  EvaluationShare Share() const { return {comm_.size(), comm_.rank(), true}; }

  // Every rank writes the same documents to a folder of its own.
  IndexedDataset MakeDataset(const std::vector<int64_t>& lengths) {
    auto writer = *IndexedDatasetWriter::Create(folder_ + "/d", kVocab);
    const Philox random(9, 9);
    uint64_t drawn = 0;
    for (int64_t length : lengths) {
      std::vector<int32_t> tokens;
      for (int64_t i = 0; i < length; ++i) {
        tokens.push_back(static_cast<int32_t>(random.Bits(drawn++) % kVocab));
      }
      EXPECT_TRUE(writer.AppendTokens(tokens).ok());
      EXPECT_TRUE(writer.EndDocument().ok());
      documents_.push_back(tokens);
    }
    EXPECT_TRUE(writer.Finish({}).ok());
    return *IndexedDataset::Open(folder_ + "/d", kVocab);
  }

  MpiRuntime mpi_;
  Communicator& comm_;
  std::string folder_;
  TestRuntime runtime_;
  std::unique_ptr<Model> model_;
  const PipelineLinks no_links_;
  std::unique_ptr<PipelineRun> run_;
  std::vector<std::vector<int32_t>> documents_;
};

void ExpectSame(const Evaluation& a, const Evaluation& b) {
  EXPECT_EQ(a.loss_sum, b.loss_sum);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.perplexity(), b.perplexity());
  ASSERT_EQ(a.buckets.size(), b.buckets.size());
  for (size_t i = 0; i < a.buckets.size(); ++i) {
    EXPECT_EQ(a.buckets[i].begin, b.buckets[i].begin);
    EXPECT_EQ(a.buckets[i].end, b.buckets[i].end);
    EXPECT_EQ(a.buckets[i].loss_sum, b.buckets[i].loss_sum);
    EXPECT_EQ(a.buckets[i].tokens, b.buckets[i].tokens);
  }
}

TEST_F(EvaluationOverRanks, IsThatOfOneRankToTheLastBit) {
  const IndexedDataset dataset = MakeDataset({150, 1, 2, 77, 300, 5, 64, 65});
  const auto self = MakeSelfCommunicator();
  for (const int64_t sequence_length : {1, 50, 64, 200}) {
    for (const int64_t max_samples : {0, 1, 2, 5}) {
      const auto together = Evaluate(*run_, dataset, sequence_length, max_samples, Share(), comm_);
      const auto alone =
          Evaluate(*run_, dataset, sequence_length, max_samples, {1, 0, true}, *self);
      ASSERT_TRUE(together.ok()) << together.status();
      ASSERT_TRUE(alone.ok()) << alone.status();
      ExpectSame(*together, *alone);
    }
  }
}

TEST_F(EvaluationOverRanks, ScoresEveryTokenOfEveryDocument) {
  const IndexedDataset dataset = MakeDataset({150, 1, 2, 77, 300});
  const int64_t sequence_length = 128;
  const auto result = Evaluate(*run_, dataset, sequence_length, /*max_samples=*/0, Share(), comm_);
  ASSERT_TRUE(result.ok()) << result.status();
  // [0, 64) and [64, 128).
  ASSERT_EQ(result->buckets.size(), 2u);
  double loss[2] = {};
  int64_t tokens[2] = {};
  for (const std::vector<int32_t>& document : documents_) {
    const auto length = static_cast<int64_t>(document.size());
    for (int64_t begin = 0; begin < length; begin += sequence_length) {
      const int64_t n = std::min(sequence_length, length - begin);
      const auto first = document.begin() + begin;
      std::vector<int32_t> targets(static_cast<size_t>(n), kIgnoredTarget);
      for (int64_t i = 0; i < n && begin + i + 1 < length; ++i) {
        targets[static_cast<size_t>(i)] = document[static_cast<size_t>(begin + i + 1)];
      }
      PackedBatch batch;
      batch.AppendPiece(std::vector<int32_t>(first, first + n), targets);
      std::vector<double> losses(static_cast<size_t>(n));
      EXPECT_TRUE(model_->TokenLosses(runtime_.context, batch, absl::MakeSpan(losses)).ok());
      for (int64_t i = 0; i < n; ++i) {
        if (targets[static_cast<size_t>(i)] == kIgnoredTarget) continue;
        loss[i / 64] += losses[static_cast<size_t>(i)];
        ++tokens[i / 64];
      }
    }
  }
  EXPECT_EQ(result->tokens, 149 + 0 + 1 + 76 + 299);
  for (size_t b = 0; b < 2; ++b) {
    EXPECT_EQ(result->buckets[b].tokens, tokens[b]);
    EXPECT_NEAR(result->buckets[b].loss_sum, loss[b], 1e-9 * loss[b]);
  }
  EXPECT_NEAR(result->loss_sum, loss[0] + loss[1], 1e-9 * result->loss_sum);
  EXPECT_NEAR(result->loss(), result->loss_sum / 525, 1e-12);
  EXPECT_NEAR(result->perplexity(), std::exp(result->loss()), 1e-9);
}

TEST_F(EvaluationOverRanks, SpreadsItsSamplesOverTheDataSet) {
  const IndexedDataset dataset = MakeDataset({2, 3, 4, 5, 6, 7, 8, 9});
  const struct {
    int64_t max_samples, tokens;
  } cases[] = {{1, 1}, {2, 1 + 5}, {3, 1 + 3 + 6}, {4, 1 + 3 + 5 + 7}, {8, 36}, {100, 36}};
  for (const auto& c : cases) {
    const auto result = Evaluate(*run_, dataset, 16, c.max_samples, Share(), comm_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->tokens, c.tokens) << c.max_samples;
  }
}

TEST_F(EvaluationOverRanks, WithoutTargetsIsNoNumberOutOfNothing) {
  const IndexedDataset dataset = MakeDataset({1, 1});
  const auto result = Evaluate(*run_, dataset, 16, 0, Share(), comm_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tokens, 0);
  EXPECT_EQ(result->loss(), 0);
  EXPECT_EQ(result->perplexity(), 1);
  EXPECT_FALSE(RenderBuckets(*result).empty());
}

}  // namespace
}  // namespace evenkeel
