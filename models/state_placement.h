// Where the state of a model (weights and the optimizer's moments) lies on the ranks of a mesh, and
// its way between them and one whole on rank 0: checkpoints hold the whole, under Hugging Face's
// names, so that any layout can save and any other resume.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "models/parameters.h"
#include "parallel/parameter_store.h"
#include "runtime/comm/communicator.h"

namespace evenkeel {

struct RankPlacement {
  ParameterLayout layout;       // of the rank's part of the model
  std::vector<RowRange> owned;  // what of it the rank owns
  bool is_source = true;        // no rank before it owns the same

  int64_t num_owned() const { return owned.back().to + owned.back().count; }
};

// The placement of each rank: a pure function of the mesh, the same on all ranks.
using Placement = std::function<RankPlacement(int rank)>;

// Every rank holds everything.
Placement Replicated(const ModelConfig& config);

// Owned buffers on the host, dense [num_owned], as they are sent around together.
using StateViews = absl::Span<const TensorView>;

// Gathers on rank 0, from the owned buffers of all source ranks, whole buffers in the layout
// `whole`. `whole_views` is read on rank 0 alone. Every rank of `comm` (of host tensors) calls it.
absl::Status GatherState(Communicator& comm, const Placement& placement,
                         const ParameterLayout& whole, StateViews mine, StateViews whole_views);

// The way back: fills every rank's owned buffers.
absl::Status ScatterState(Communicator& comm, const Placement& placement,
                          const ParameterLayout& whole, StateViews whole_views, StateViews mine);

}  // namespace evenkeel
