// Times whole training steps of a model on one device, on random tokens: forward and backward pass,
// norm of the gradient, AdamW. One rank alone, the whole model, one micro-batch a step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launch/bench_measure.h"
#include "launch/rank_runtime.h"
#include "models/model.h"
#include "models/optimizer.h"
#include "runtime/data/packed_batch.h"

namespace evenkeel {

// `count` documents of `length` random tokens each.
PackedBatch RandomDocuments(int64_t length, int64_t count, int64_t vocab_size);

// A model with its optimizer, and the two parts of a step.
class TrainingStep {
 public:
  // Initial weights are drawn from seed 1. `context` and `tracker` must outlive it.
  static absl::StatusOr<std::unique_ptr<TrainingStep>> Create(const OpContext& context,
                                                              const ModelConfig& config, bool fp8,
                                                              MemoryTracker& tracker);

  // The gradient of the mean loss; sums [2] (float64, zero): the losses, the gradient's squares.
  void ComputeGradients(const OpContext& context, const PackedBatch& batch, Recompute recompute,
                        TensorView sums);
  // Updates the weights from it.
  void Update(const OpContext& context, TensorView sums);
  // Both, and what a run does to go on: waits. `results` [2] receives the sums.
  absl::Status Run(const OpContext& context, const PackedBatch& batch, Recompute recompute,
                   double* results);

 private:
  TrainingStep(Model model, Optimizer optimizer)
      : model_(std::move(model)), optimizer_(std::move(optimizer)) {}

  Model model_;
  Optimizer optimizer_;
  int64_t steps_ = 0;
};

// Steps before the first timed one: products that come up often are tuned in them
// (runtime/ops/cuda/matmul_cuda.h).
int64_t WarmUpSteps(const OpContext& context, int64_t tokens);

struct StepBenchOptions {
  ModelConfig model;
  Recompute recompute = Recompute::kNone;
  bool fp8 = false;
  std::vector<int64_t> lengths;  // of documents
  int64_t tokens = 0;            // of a step; a longer document is a step alone
  TimingOptions timing;
  bool profile = false;  // takes one more step apart
};

// What the spans of one name took in a step, inner ones included (runtime/ops/step_trace.h); layers
// are one.
struct SpanTime {
  std::string name;
  int64_t calls = 0;
  double seconds = 0;
};

struct StepPoint {
  int64_t length = 0;
  int64_t documents = 0;
  double gradients_s = 0;         // forward and backward
  double step_s = 0;              // all
  int64_t peak_bytes = 0;         // of the process so far
  double model_flops = 0;         // of a step; recomputation not counted
  double loss = 0;                // mean over the targets, of the last step
  std::vector<SpanTime> profile;  // by name, ascending

  int64_t tokens() const { return length * documents; }
};

// Fails with kResourceExhausted where a step of any length needs more than the device has.
absl::Status CheckStepsFit(const RankRuntime& rank, const StepBenchOptions& options);

// Measures steps of every length, ascending, which must fit. Calls tell(point) after each. Fails as
// Model::Create does.
absl::StatusOr<std::vector<StepPoint>> MeasureSteps(
    const RankRuntime& rank, const StepBenchOptions& options,
    const std::function<void(const StepPoint&)>& tell);

}  // namespace evenkeel
