#include "launch/run_folder.h"

#include <unistd.h>

namespace evenkeel {
namespace {

std::string StopPath(const std::string& folder) {
  return folder + "/STOP";
}

}  // namespace

bool HasStopFile(const std::string& folder) {
  return access(StopPath(folder).c_str(), F_OK) == 0;
}

void RemoveStopFile(const std::string& folder) {
  (void)unlink(StopPath(folder).c_str());
}

}  // namespace evenkeel
