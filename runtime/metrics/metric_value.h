// A named value of a log line or a trace event.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

namespace evenkeel {

struct MetricValue {
  std::string name;
  std::variant<double, int64_t, std::string> value;
};

}  // namespace evenkeel
