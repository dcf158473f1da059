// The mark of a token without a target, shared by the data that sets it and the loss that reads it.
#pragma once

#include <cstdint>

namespace evenkeel {

// A target of kIgnoredTarget takes no part in the loss: loss 0, gradient 0.
inline constexpr int32_t kIgnoredTarget = -1;

}  // namespace evenkeel
