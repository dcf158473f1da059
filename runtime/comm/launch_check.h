// Whether this process was started the way it was meant to be. Without mpirun, or under the mpirun
// of another MPI, each of N processes is a world of one rank and would silently train a copy.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace evenkeel {

// Reads an environment variable; null if it is not set. std::getenv, but for tests.
using GetEnvironment = std::function<const char*(const char*)>;

// Returns whether an MPI launcher started this process. If not, MPI need not be initialised:
// MakeSelfCommunicator() serves one rank.
bool IsStartedByLauncher(const GetEnvironment& get);

// Fails with kInvalidArgument if the world has one rank though the environment (mpirun's, another
// MPI's, Slurm's or torchrun's variables) says that more were asked for. Only for subcommands that
// are run by many ranks: inside a Slurm job of 8 tasks it is fine to build a data set with one.
absl::Status CheckLaunch(int world_size, const GetEnvironment& get);

}  // namespace evenkeel
