// The sizes of a configured model, as the planner wants them.
#pragma once

#include "models/block.h"
#include "models/model_config.h"
#include "models/model_part.h"
#include "runtime/tensor/tensor_view.h"
#include "scheduler/compute_shape.h"
#include "scheduler/model_shape.h"

namespace evenkeel {

ModelShape ShapeOf(const ModelConfig& config);
// Of the part that a rank holds.
ModelShape ShapeOf(const ModelConfig& config, const ModelPart& part);

// How the ops compute on `device` in `dtype`, as planning sees it: `vocab_rows` of the vocabulary a
// rank, `tp` tensor-parallel ranks.
ComputeShape ComputeShapeOf(Device device, DType dtype, int64_t vocab_rows, int tp = 1);

RecomputePlan PlanOf(Recompute recompute);

}  // namespace evenkeel
