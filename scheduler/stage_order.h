// In which order a pipeline rank begins, runs and ends its passes, as models/pipeline_run.h does.
// Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/pipeline_schedule.h"

namespace evenkeel {

enum class PassPhase { kBegin, kForward, kBackward };

struct PassEvent {
  PassPhase phase = PassPhase::kBegin;
  int chunk = 0;
  int slot = 0;           // whose arena the pass lives in
  bool is_final = false;  // the last backward pass of the chunk in this step
};

// `same_phase`: as with disaggregated attention (models/pooled_run.cc).
std::vector<PassEvent> PassEvents(const MeshShape& mesh, int pp_rank, int num_chunks,
                                  int64_t micro_batches, bool same_phase);

}  // namespace evenkeel
