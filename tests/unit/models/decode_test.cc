// Token-by-token decoding against the whole sequence at once.
#include "models/decode.h"

#include <gtest/gtest.h>

#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::AllTinyModels;
using testing_support::MakeModel;
using testing_support::NamedModel;
using testing_support::RandomBatch;
using testing_support::TestRuntime;

class DecodeTest : public testing::TestWithParam<NamedModel> {};

// A prompt in uneven pieces, then single tokens: the logits after each piece are those of the same
// position in one pass over everything.
TEST_P(DecodeTest, StepsEqualTheWholeSequence) {
  TestRuntime runtime;
  auto model = MakeModel(runtime, GetParam().config);
  const int64_t vocab = GetParam().config.vocab_size;
  const PackedBatch batch = RandomBatch({31}, vocab, 9);
  const auto dtype = DType::kF64;
  auto whole = Tensor::Create(dtype, {31, vocab}, MemoryPurpose::kWorkspace, runtime.tracker);
  auto step = Tensor::Create(dtype, {1, vocab}, MemoryPurpose::kWorkspace, runtime.tracker);
  ASSERT_TRUE(whole.ok() && step.ok());
  model->Logits(runtime.context, batch, whole->view());
  auto cache = DecodeCache::Create(runtime.context, *model, 31, runtime.tracker);
  ASSERT_TRUE(cache.ok()) << cache.status();
  size_t at = 0;
  for (size_t count : {5, 1, 1, 9, 2, 1, 1, 1, 10}) {
    DecodeStep(runtime.context, *model, absl::MakeConstSpan(batch.tokens).subspan(at, count),
               *cache, step->view());
    at += count;
    const double* expected = whole->view().as<double>() + (static_cast<int64_t>(at) - 1) * vocab;
    for (int64_t v = 0; v < vocab; ++v) {
      ASSERT_NEAR(step->view().as<double>()[v], expected[v], 1e-11) << "after " << at << " tokens";
    }
  }
  EXPECT_EQ(cache->length(), 31);
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, DecodeTest, testing::ValuesIn(AllTinyModels()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace evenkeel
