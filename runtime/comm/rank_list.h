// Ranks in messages.
#pragma once

#include <string>
#include <vector>

namespace evenkeel {

// "rank 3", "ranks 0, 2-5". `ranks` ascends.
std::string FormatRanks(const std::vector<int>& ranks);

}  // namespace evenkeel
