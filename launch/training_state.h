// What a checkpoint of a run holds, and the way in and out of it.
//   model.safetensors, config.json   the weights as Hugging Face lays them out: the folder can be
//                                    loaded by transformers, `eval`, `generate`
//   optimizer.safetensors            AdamW's two moments, "exp_avg.<name>" and "exp_avg_sq.<name>"
//   state (in the manifest)          step, data position, seed, identity of the data; with FP8 the
//                                    largest values that its scales follow from
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/model.h"
#include "models/optimizer.h"
#include "models/state_placement.h"
#include "runtime/checkpoint/checkpoint_store.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

// The position of a run. Sample order and initial weights are functions of the seed and a counter,
// so the counters are all the state that random numbers have.
struct TrainingProgress {
  int64_t step = 0;     // updates done
  int64_t samples = 0;  // global samples consumed
  int64_t tokens = 0;   // tokens of those samples
  int64_t seed = 0;
  int64_t sequence_length = 0;
  std::string data_fingerprint;
};

// Saves a checkpoint of the current step: gathers the state on rank 0, which has the store and
// writes. `placement` says what each rank of `comm` (of host tensors) holds. Every rank calls it;
// fails alike on all.
absl::Status SaveTraining(const OpContext& context, Communicator& comm, const Placement& placement,
                          CheckpointStore* store, const TrainingProgress& progress, int keep_last,
                          Model& model, Optimizer& optimizer);

// Loads the newest good checkpoint on rank 0 and hands every rank of `comm` its part; they need no
// common file system, and the checkpoint may have been saved under any other placement. Every rank
// calls it. Returns whether there was one. Fails if the checkpoint belongs to another model, seed,
// sequence length or data set than `expected` says, naming both values.
absl::StatusOr<bool> RestoreTraining(const OpContext& context, Communicator& comm,
                                     const Placement& placement, const CheckpointStore* store,
                                     bool fallback, const TrainingProgress& expected,
                                     TrainingProgress* progress, Model& model,
                                     Optimizer& optimizer);

// Fills the weights with initial values, drawn from `seed` or read by rank 0 from `folder` (in the
// layout of Hugging Face; empty: drawn). Every rank calls it.
absl::Status InitializeWeights(const OpContext& context, Communicator& comm,
                               const Placement& placement, uint64_t seed, const std::string& folder,
                               Model& model);

}  // namespace evenkeel
