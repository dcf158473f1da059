// Numbers for people to read at a glance.
#pragma once

#include <string>

namespace evenkeel {

// "0s", "430ms", "3.2s", "42s", "3m12s", "5h07m", "3d04h"; "--" if negative or not finite.
std::string FormatDuration(double seconds);

// Three significant digits: "999", "12.3k", "1.23M", "7.00B", "1.50T"; whole numbers below 1000 in
// full; "nan", "inf".
std::string FormatCount(double count);

}  // namespace evenkeel
