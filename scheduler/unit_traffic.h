// What data-parallel ranks exchange of weights and gradients in a step, and the memory they hold it
// in meanwhile, by going through the calls that a step makes of parallel/parameter_store.h. Pure.
#pragma once

#include <cstdint>

#include "scheduler/model_shape.h"
#include "scheduler/rank_layout.h"

namespace evenkeel {

// Numbers of elements, of a step that another one came before.
struct UnitTraffic {
  int64_t gathered = 0;        // of weights, of this rank's parts: each goes to all others
  int64_t reduced = 0;         // of gradients, of whole units: each rank gets its part of the sum
  int64_t all_reduced = 0;     // of gradients that all ranks get the sum of
  int64_t weight_slots = 0;    // memory for units that are whole at times
  int64_t gradient_slots = 0;  // likewise, and for the sums of this rank's parts
};

// `shape`: of the rank's part.
UnitTraffic UnitTrafficOf(const ModelShape& shape, const RankLayout& layout, int64_t micro_batches);

}  // namespace evenkeel
