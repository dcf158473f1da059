// The folder a run writes into.
#pragma once

#include <string>

namespace evenkeel {

// Whether the user asked the run to stop by making a file STOP in its folder.
bool HasStopFile(const std::string& folder);
void RemoveStopFile(const std::string& folder);

}  // namespace evenkeel
