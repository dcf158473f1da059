#include "scheduler/attention_cost.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace evenkeel {
namespace {

// The logarithm of a length, from operations that IEEE 754 defines to the last bit: every rank has
// to make the same plan, and the C library's logarithm may differ from one host to the next.
double LogOf(int64_t length) {
  int exponent = 0;
  const double mantissa = std::frexp(static_cast<double>(length), &exponent);  // in [0.5, 1)
  const double t = (mantissa - 1) / (mantissa + 1);
  const double square = t * t;
  double series = 0;
  for (int power = 21; power >= 1; power -= 2) series = series * square + 1.0 / power;
  constexpr double kLn2 = 0.69314718055994531;
  return exponent * kLn2 + 2 * t * series;
}

absl::Status CheckLengths(const std::vector<int64_t>& lengths, const char* name) {
  if (lengths.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is empty; at least one length"));
  }
  if (lengths.front() < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " begins with ", lengths.front(), "; lengths are at least 1"));
  }
  for (size_t i = 1; i < lengths.size(); ++i) {
    if (lengths[i] > lengths[i - 1]) continue;
    return absl::InvalidArgumentError(absl::StrCat(name, " has ", lengths[i], " after ",
                                                   lengths[i - 1], "; lengths have to ascend"));
  }
  return absl::OkStatus();
}

}  // namespace

void AttentionCost::GridAxis::Set(std::vector<int64_t> points) {
  lengths = std::move(points);
  logs.clear();
  for (const int64_t length : lengths) logs.push_back(LogOf(length));
}

std::pair<size_t, double> AttentionCost::GridAxis::Find(int64_t length) const {
  if (length <= lengths.front()) return {0, 0};
  if (length >= lengths.back()) return {lengths.size() - 1, 0};
  const auto above = std::upper_bound(lengths.begin(), lengths.end(), length);
  const auto i = static_cast<size_t>(above - lengths.begin()) - 1;
  return {i, (LogOf(length) - logs[i]) / (logs[i + 1] - logs[i])};
}

AttentionCost AttentionCost::PerPair(double seconds_per_pair) {
  AttentionCost cost;
  cost.seconds_per_pair_ = {seconds_per_pair};
  return cost;
}

absl::StatusOr<AttentionCost> AttentionCost::Grid(std::vector<int64_t> q_lens,
                                                  std::vector<int64_t> kv_lens,
                                                  std::vector<double> seconds_per_pair) {
  if (absl::Status status = CheckLengths(q_lens, "q_lens"); !status.ok()) return status;
  if (absl::Status status = CheckLengths(kv_lens, "kv_lens"); !status.ok()) return status;
  if (seconds_per_pair.size() != q_lens.size() * kv_lens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("seconds_per_pair has ", seconds_per_pair.size(), " numbers; ", q_lens.size(),
                     " query lengths by ", kv_lens.size(), " key lengths take ",
                     q_lens.size() * kv_lens.size()));
  }
  for (size_t i = 0; i < seconds_per_pair.size(); ++i) {
    if (std::isfinite(seconds_per_pair[i]) && seconds_per_pair[i] > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "seconds_per_pair is ", seconds_per_pair[i], " for ", q_lens[i / kv_lens.size()],
        " queries and ", kv_lens[i % kv_lens.size()], " keys; it has to be positive and finite"));
  }
  AttentionCost cost;
  cost.q_lens_.Set(std::move(q_lens));
  cost.kv_lens_.Set(std::move(kv_lens));
  cost.seconds_per_pair_ = std::move(seconds_per_pair);
  return cost;
}

double AttentionCost::SecondsPerPair(int64_t q_len, int64_t kv_len) const {
  const auto [row, down] = q_lens_.Find(q_len);
  const auto [column, right] = kv_lens_.Find(kv_len);
  const size_t width = kv_lens_.lengths.size();
  const auto along = [&](size_t r) {
    const double left = seconds_per_pair_[r * width + column];
    if (right == 0) return left;
    return left + right * (seconds_per_pair_[r * width + column + 1] - left);
  };
  const double above = along(row);
  if (down == 0) return above;
  return above + down * (along(row + 1) - above);
}

}  // namespace evenkeel
