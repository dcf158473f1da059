// A small model with its optimizer, and a folder for its checkpoints.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "launch/training_state.h"
#include "models/optimizer.h"
#include "models/state_placement.h"
#include "runtime/comm/self_communicator.h"
#include "tests/support/tiny_models.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {

struct SmallRun {
  explicit SmallRun(uint64_t seed, DType dtype = DType::kF64,
                    const ModelConfig& config = testing_support::TinyConfig({LayerKind::kLightning,
                                                                             LayerKind::kSoftmax}))
      : runtime(dtype),
        model(testing_support::MakeModel(runtime, config, seed)),
        optimizer(*Optimizer::Create(runtime.context, *model, AdamWConfig(), runtime.tracker)) {
    progress.seed = 3;
    progress.sequence_length = 64;
    progress.data_fingerprint = "a5";
  }

  // One update, so that the moments are not zero.
  void Train(int64_t step) {
    const PackedBatch batch = testing_support::RandomBatch({9, 4}, model->config().vocab_size, 5);
    testing_support::ForwardBackward(runtime, *model, batch, 1);
    testing_support::Update(runtime, optimizer, AdamWStepParams{1e-2, step, 0}, *model);
    progress.step = step;
    progress.samples = 8 * step;
    progress.tokens = 512 * step;
  }

  // Weights and both moments, as bytes.
  std::string Bytes() {
    std::string bytes;
    for (Tensor* tensor : {&model->weights(), &optimizer.exp_avg(), &optimizer.exp_avg_sq()}) {
      bytes.append(static_cast<const char*>(tensor->view().data),
                   static_cast<size_t>(tensor->num_bytes()));
    }
    return bytes;
  }

  testing_support::TestRuntime runtime;
  std::unique_ptr<Model> model;
  Optimizer optimizer;
  TrainingProgress progress;
};

// Saves it as the only rank there is.
inline absl::Status Save(SmallRun& run, CheckpointStore* store, int keep_last) {
  const auto comm = MakeSelfCommunicator();
  return SaveTraining(run.runtime.context, *comm, Replicated(run.model->config()), store,
                      run.progress, keep_last, *run.model, run.optimizer);
}

}  // namespace evenkeel
