// The sizes of a configured model, as the planner wants them.
#pragma once

#include "models/model_config.h"
#include "runtime/tensor/tensor_view.h"
#include "scheduler/memory_plan.h"
#include "scheduler/model_shape.h"

namespace evenkeel {

ModelShape ShapeOf(const ModelConfig& config);

// How the ops compute on `device` in `dtype`, as the memory plan sees it.
ComputeShape ComputeShapeOf(Device device, DType dtype, int64_t vocab_size);

}  // namespace evenkeel
