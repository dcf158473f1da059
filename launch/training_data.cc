#include "launch/training_data.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"
#include "runtime/data/dataset_info.h"
#include "runtime/data/sample_reader.h"

namespace evenkeel {
namespace {

// The error of what `key` of the config names, which begins with a file's name.
absl::Status OfKey(const char* key, const absl::Status& status) {
  return WithExitCode(
      absl::Status(status.code(), absl::StrCat(key, ": ", std::string(status.message()))),
      ExitCodeOf(status));
}

// Without this, a rare token would end the run days after it has begun.
absl::Status CheckVocabulary(const std::string& prefix, int64_t vocab_size) {
  const absl::StatusOr<DatasetInfo> info = ReadDatasetInfo(prefix);
  if (absl::IsNotFound(info.status())) return absl::OkStatus();  // another program's data set
  EK_RETURN_IF_ERROR(info.status());
  if (info->vocab_size <= vocab_size) return absl::OkStatus();
  return DataError(absl::StrCat(DatasetInfoPath(prefix), ": the vocabulary of tokenizer ",
                                info->tokenizer, " is ", info->vocab_size,
                                ", that of the model is ", vocab_size,
                                ": model.vocab_size has to be at least as large"));
}

}  // namespace

absl::StatusOr<IndexedDataset> OpenDataset(const char* key, const std::string& prefix,
                                           int64_t vocab_size) {
  absl::StatusOr<IndexedDataset> dataset = IndexedDataset::Open(prefix, vocab_size);
  if (!dataset.ok()) return OfKey(key, dataset.status());
  if (absl::Status status = CheckVocabulary(prefix, vocab_size); !status.ok()) {
    return OfKey(key, status);
  }
  return dataset;
}

absl::StatusOr<std::optional<HeldOutData>> HeldOutData::Open(const RunConfig& config,
                                                             const MeshShape& mesh) {
  if (config.data.validation.empty()) return std::nullopt;
  EK_ASSIGN_OR_RETURN(IndexedDataset dataset, OpenDataset("data.validation", config.data.validation,
                                                          config.model.vocab_size));
  auto samples = EvaluationSamples::Create(dataset.document_lengths(), config.data.sequence_length,
                                           config.train.eval_samples, mesh.dp, mesh.pp);
  if (!samples.ok()) return OfKey("data.validation", samples.status());
  return HeldOutData{std::move(dataset), *std::move(samples)};
}

absl::StatusOr<TrainingData> TrainingData::Open(const std::string& prefix, int64_t vocab_size,
                                                int64_t sequence_length, uint64_t seed) {
  EK_ASSIGN_OR_RETURN(IndexedDataset dataset, OpenDataset("data.train", prefix, vocab_size));
  EK_ASSIGN_OR_RETURN(SampleOrder order,
                      SampleOrder::Create(dataset.document_lengths(), sequence_length, seed));
  return TrainingData(std::move(dataset), std::move(order));
}

absl::StatusOr<PackedBatch> TrainingData::Read(const MicroBatch& micro_batch) {
  PackedBatch batch;
  for (int64_t i = 0; i < micro_batch.num_samples; ++i) {
    EK_RETURN_IF_ERROR(AppendSample(dataset_, order_.Sample(micro_batch.first_sample + i), &batch));
  }
  return batch;
}

}  // namespace evenkeel
