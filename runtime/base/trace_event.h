// One span of a timeline.
#pragma once

#include <string>

namespace evenkeel {

struct TraceEvent {
  std::string name;
  double start_us = 0;  // of a steady clock of the host, as TraceWriter::NowUs() reads it
  double duration_us = 0;
};

}  // namespace evenkeel
