#include "runtime/comm/rank_list.h"

#include "absl/strings/str_cat.h"

namespace evenkeel {

std::string FormatRanks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t begin = 0; begin < ranks.size();) {
    size_t end = begin + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    absl::StrAppend(&text, begin == 0 ? "" : ", ", ranks[begin]);
    if (end - begin == 2) absl::StrAppend(&text, ", ", ranks[end - 1]);
    if (end - begin > 2) absl::StrAppend(&text, "-", ranks[end - 1]);
    begin = end;
  }
  return text;
}

}  // namespace evenkeel
