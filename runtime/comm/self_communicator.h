// A group of one rank, without any communication library.
#pragma once

#include <memory>

#include "runtime/comm/communicator.h"

namespace evenkeel {

// Every call completes at once; gathers copy; messages to itself arrive in order.
std::unique_ptr<Communicator> MakeSelfCommunicator();

}  // namespace evenkeel
