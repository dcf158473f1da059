// How long a run takes until its first step, and what of it: a line for whoever waits.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace evenkeel {

class StartClock {
 public:
  // What has been done since construction, or the lap before, was `what`.
  void Lap(const std::string& what);

  // "8.3 s: MPI 0.4, GPU 2.1, weights 5.8"; what took less than 50 ms is left out.
  std::string Text() const;

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point lap_ = Clock::now();
  std::vector<std::pair<std::string, double>> laps_;  // seconds, in their order
};

}  // namespace evenkeel
