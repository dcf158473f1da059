// Whole models in float64: gradients against central differences, packing, recomputation, threads.
#include "models/model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::AllTinyModels;
using testing_support::ForwardBackward;
using testing_support::MakeModel;
using testing_support::NamedModel;
using testing_support::RandomBatch;
using testing_support::TestRuntime;

// Lengths 1, 2, primes, more and less than a block of the blocked layers.
const std::vector<int64_t> kLengths = {1, 7, 2, 13, 4};

double SumOfLosses(TestRuntime& runtime, Model& model, const PackedBatch& batch) {
  std::vector<double> losses(batch.tokens.size());
  EXPECT_TRUE(model.TokenLosses(runtime.context, batch, absl::MakeSpan(losses)).ok());
  double sum = 0;
  for (double loss : losses) sum += loss;
  return sum;
}

std::vector<double> Gradients(TestRuntime& runtime, Model& model, const PackedBatch& batch,
                              double scale, Recompute recompute) {
  const int64_t n = model.layout().num_elements();
  double* gradients = model.gradients().view().as<double>();
  std::fill(gradients, gradients + n, 0.0);
  ForwardBackward(runtime, model, batch, scale, recompute);
  return {gradients, gradients + n};
}

class ModelTest : public testing::TestWithParam<NamedModel> {};

// Five-point differences, so that their own error stays below the bound, on coordinates of every
// tensor and along random directions.
TEST_P(ModelTest, GradientsMatchCentralDifferences) {
  TestRuntime runtime;
  auto model = MakeModel(runtime, GetParam().config);
  const PackedBatch batch = RandomBatch(kLengths, GetParam().config.vocab_size, 3);
  const double scale = 0.37;
  const auto gradients = Gradients(runtime, *model, batch, scale, Recompute::kNone);
  double* weights = model->weights().view().as<double>();
  const auto loss = [&] { return scale * SumOfLosses(runtime, *model, batch); };
  for (const ParameterSpec& spec : model->layout().specs()) {
    if (!spec.trainable) continue;
    double norm = 0;
    for (int64_t i = 0; i < spec.size(); ++i) {
      norm += std::pow(gradients[static_cast<size_t>(spec.offset + i)], 2);
    }
    norm = std::sqrt(norm);
    ASSERT_GT(norm, 0) << spec.name << " has no gradient";
    // One direction over the whole tensor and a few single coordinates.
    const Philox random(11, static_cast<uint64_t>(spec.offset));
    for (int probe = 0; probe < 4; ++probe) {
      std::vector<double> direction(static_cast<size_t>(spec.size()), 0.0);
      if (probe == 0) {
        for (size_t i = 0; i < direction.size(); ++i) direction[i] = random.Normal(i);
      } else {
        direction[random.Bits(1000 + static_cast<uint64_t>(probe)) % direction.size()] = 1;
      }
      double length = 0, analytic = 0;
      for (double d : direction) length += d * d;
      length = std::sqrt(length);
      const std::vector<double> start(weights + spec.offset, weights + spec.offset + spec.size());
      for (size_t i = 0; i < direction.size(); ++i) {
        direction[i] /= length;
        analytic += direction[i] * gradients[static_cast<size_t>(spec.offset) + i];
      }
      const auto at = [&](double step) {
        for (size_t i = 0; i < direction.size(); ++i) {
          weights[static_cast<size_t>(spec.offset) + i] = start[i] + step * direction[i];
        }
        return loss();
      };
      // T1's ReLU has kinks, which a step must not reach across.
      const bool has_kinks = GetParam().config.variant == TransNormerVariant::kT1;
      const double h = has_kinks ? 1e-6 : 1e-3;
      const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
      std::copy(start.begin(), start.end(), weights + spec.offset);
      EXPECT_NEAR(analytic, numeric, 1e-6 * std::max(norm, 1e-3))
          << spec.name << " probe " << probe;
    }
  }
}

TEST_P(ModelTest, PackedDocumentsEqualEachAlone) {
  TestRuntime runtime;
  auto model = MakeModel(runtime, GetParam().config);
  const PackedBatch batch = RandomBatch(kLengths, GetParam().config.vocab_size, 3);
  std::vector<double> packed(batch.tokens.size());
  ASSERT_TRUE(model->TokenLosses(runtime.context, batch, absl::MakeSpan(packed)).ok());
  const auto packed_gradients = Gradients(runtime, *model, batch, 1.0, Recompute::kNone);
  std::vector<double> summed(packed_gradients.size(), 0.0);
  for (size_t d = 0; d < kLengths.size(); ++d) {
    const auto begin = static_cast<size_t>(batch.cu_seqlens[d]);
    const auto end = static_cast<size_t>(batch.cu_seqlens[d + 1]);
    PackedBatch alone;
    alone.AppendPiece(absl::MakeConstSpan(batch.tokens).subspan(begin, end - begin),
                      absl::MakeConstSpan(batch.targets).subspan(begin, end - begin));
    std::vector<double> losses(end - begin);
    ASSERT_TRUE(model->TokenLosses(runtime.context, alone, absl::MakeSpan(losses)).ok());
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], packed[begin + i], 1e-12);
    const auto gradients = Gradients(runtime, *model, alone, 1.0, Recompute::kNone);
    for (size_t i = 0; i < summed.size(); ++i) summed[i] += gradients[i];
  }
  for (size_t i = 0; i < summed.size(); ++i) {
    ASSERT_NEAR(summed[i], packed_gradients[i], 1e-12 * (1 + std::fabs(summed[i]))) << i;
  }
}

TEST_P(ModelTest, ChangingOneDocumentLeavesTheOthersBitIdentical) {
  TestRuntime runtime;
  auto model = MakeModel(runtime, GetParam().config);
  PackedBatch batch = RandomBatch(kLengths, GetParam().config.vocab_size, 3);
  std::vector<double> before(batch.tokens.size()), after(batch.tokens.size());
  ASSERT_TRUE(model->TokenLosses(runtime.context, batch, absl::MakeSpan(before)).ok());
  const auto changed_begin = static_cast<size_t>(batch.cu_seqlens[1]);
  const auto changed_end = static_cast<size_t>(batch.cu_seqlens[2]);
  for (size_t i = changed_begin; i < changed_end; ++i) {
    batch.tokens[i] = static_cast<int32_t>((batch.tokens[i] + 5) % GetParam().config.vocab_size);
  }
  ASSERT_TRUE(model->TokenLosses(runtime.context, batch, absl::MakeSpan(after)).ok());
  bool any_changed = false;
  for (size_t i = 0; i < before.size(); ++i) {
    if (i >= changed_begin && i < changed_end) {
      any_changed = any_changed || before[i] != after[i];
    } else {
      EXPECT_EQ(before[i], after[i]) << i;
    }
  }
  EXPECT_TRUE(any_changed);
}

TEST_P(ModelTest, RecomputationChangesNothing) {
  TestRuntime runtime;
  auto model = MakeModel(runtime, GetParam().config);
  const PackedBatch batch = RandomBatch(kLengths, GetParam().config.vocab_size, 3);
  const auto kept = Gradients(runtime, *model, batch, 0.5, Recompute::kNone);
  for (const Recompute recompute :
       {Recompute::kMlp, Recompute::kAllButAttention, Recompute::kLayer}) {
    EXPECT_EQ(kept, Gradients(runtime, *model, batch, 0.5, recompute))
        << static_cast<int>(recompute);
  }
}

TEST_P(ModelTest, ThreadsChangeNothing) {
  std::vector<std::vector<double>> results;
  for (int threads : {1, 2, 3}) {
    TestRuntime runtime(DType::kF64, threads);
    auto model = MakeModel(runtime, GetParam().config);
    const PackedBatch batch = RandomBatch({61, 1, 200, 43}, GetParam().config.vocab_size, 3);
    results.push_back(Gradients(runtime, *model, batch, 0.5, Recompute::kNone));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_P(ModelTest, ArenaIsGivenBackAndLossesAgree) {
  TestRuntime runtime;
  auto model = MakeModel(runtime, GetParam().config);
  const PackedBatch batch = RandomBatch(kLengths, GetParam().config.vocab_size, 3);
  const double loss = ForwardBackward(runtime, *model, batch, 1);
  EXPECT_EQ(runtime.arena.bytes_in_use(), 0);
  EXPECT_NEAR(loss, SumOfLosses(runtime, *model, batch), 1e-12 * loss);
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, ModelTest, testing::ValuesIn(AllTinyModels()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace evenkeel
