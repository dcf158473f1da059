// From a config's data section to the packed batches of a step.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/evaluation_samples.h"
#include "launch/run_config.h"
#include "parallel/batch_layout.h"
#include "parallel/mesh.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/data/packed_batch.h"
#include "runtime/data/sample_order.h"

namespace evenkeel {

// Opens what `key` of the config (or of the command line) names; errors begin with it. A data set
// whose own description promises tokens beyond `vocab_size` is refused here, not when one is read.
absl::StatusOr<IndexedDataset> OpenDataset(const char* key, const std::string& prefix,
                                           int64_t vocab_size);

// What a run is evaluated on, and how its replicas share it.
struct HeldOutData {
  // Opens data.validation; nothing where the config names none.
  static absl::StatusOr<std::optional<HeldOutData>> Open(const RunConfig& config,
                                                         const MeshShape& mesh);

  IndexedDataset dataset;
  EvaluationSamples samples;
};

class TrainingData {
 public:
  static absl::StatusOr<TrainingData> Open(const std::string& prefix, int64_t vocab_size,
                                           int64_t sequence_length, uint64_t seed);

  const IndexedDataset& dataset() const { return dataset_; }
  int64_t num_samples_per_epoch() const { return order_.num_samples_per_epoch(); }

  // Returns the micro-batch's samples laid end to end.
  absl::StatusOr<PackedBatch> Read(const MicroBatch& micro_batch);

 private:
  TrainingData(IndexedDataset dataset, SampleOrder order)
      : dataset_(std::move(dataset)), order_(std::move(order)) {}

  IndexedDataset dataset_;
  SampleOrder order_;
};

}  // namespace evenkeel
