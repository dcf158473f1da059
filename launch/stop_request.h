// Requests to save and leave: a signal, a STOP file in the run folder, or the wall-time limit.
#pragma once

#include <string>

namespace evenkeel {

// From now on SIGUSR1, SIGUSR2, SIGTERM and SIGINT set a flag instead of ending the process; a
// second SIGINT or SIGTERM ends it at once. SIGXFSZ is ignored, so that a file size limit is an
// error of the write.
void CatchStopSignals();

// The name of the first signal caught, or "" if none.
std::string CaughtSignal();

}  // namespace evenkeel
