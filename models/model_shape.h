// The sizes of a configured model, as the planner wants them.
#pragma once

#include "models/model_config.h"
#include "scheduler/model_shape.h"

namespace evenkeel {

ModelShape ShapeOf(const ModelConfig& config);

}  // namespace evenkeel
