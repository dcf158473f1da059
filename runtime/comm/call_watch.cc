#include "runtime/comm/call_watch.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_format.h"

namespace evenkeel {

std::string DescribeTimeout(const WatchedCall& call, double waited_s) {
  return absl::StrFormat("%s timed out after %.1f s on %s at step %d, call number %d%s", call.text,
                         waited_s, call.place, call.step, call.sequence,
                         call.describe_absent == nullptr ? "" : call.describe_absent());
}

std::optional<std::string> CallWatch::FindOverdue(int64_t now_ns) {
  std::optional<std::string> overdue;
  // Only the first call of a stream that has not ended can be under way; asking the device about
  // those behind it would cost time for nothing.
  std::vector<int> busy;
  size_t num_kept = 0;
  for (size_t i = 0; i < calls_.size(); ++i) {
    Entry& entry = calls_[i];
    if (std::find(busy.begin(), busy.end(), entry.call.stream) == busy.end()) {
      if (entry.call.has_ended()) continue;
      busy.push_back(entry.call.stream);
      if (entry.begin_ns == 0 && entry.call.has_started()) entry.begin_ns = now_ns;
      const double waited_s = static_cast<double>(now_ns - entry.begin_ns) * 1e-9;
      if (entry.begin_ns != 0 && waited_s > timeout_s_ && !overdue.has_value()) {
        overdue = DescribeTimeout(entry.call, waited_s);
      }
    }
    if (num_kept != i) calls_[num_kept] = std::move(entry);
    ++num_kept;
  }
  calls_.resize(num_kept);
  return overdue;
}

const WatchedCall* CallWatch::FirstOf(int stream) const {
  for (const Entry& entry : calls_) {
    if (entry.call.stream == stream) return &entry.call;
  }
  return nullptr;
}

}  // namespace evenkeel
