#include "launch/training_data.h"

#include "runtime/base/status_macros.h"
#include "runtime/data/sample_reader.h"

namespace evenkeel {

absl::StatusOr<TrainingData> TrainingData::Open(const std::string& prefix, int64_t vocab_size,
                                                int64_t sequence_length, uint64_t seed) {
  EK_ASSIGN_OR_RETURN(IndexedDataset dataset, IndexedDataset::Open(prefix, vocab_size));
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
