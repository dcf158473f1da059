#include "runtime/data/packed_batch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace evenkeel {

int64_t PackedBatch::num_valid() const {
  return std::count_if(targets.begin(), targets.end(),
                       [](int32_t target) { return target != kIgnoredTarget; });
}

void PackedBatch::AppendPiece(absl::Span<const int32_t> piece_tokens,
                              absl::Span<const int32_t> piece_targets) {
  EK_CHECK(piece_tokens.size() == piece_targets.size())
      << piece_tokens.size() << " tokens, " << piece_targets.size() << " targets";
  if (piece_tokens.empty()) return;
  tokens.insert(tokens.end(), piece_tokens.begin(), piece_tokens.end());
  targets.insert(targets.end(), piece_targets.begin(), piece_targets.end());
  for (int64_t i = 0; i < static_cast<int64_t>(piece_tokens.size()); ++i) positions.push_back(i);
  cu_seqlens.push_back(num_tokens());
}

void PackedBatch::Clear() {
  tokens.clear();
  targets.clear();
  positions.clear();
  cu_seqlens.assign(1, 0);
}

absl::Status PackedBatch::Validate(int64_t vocab_size) const {
  const auto error = [](auto... parts) {
    return absl::InternalError(absl::StrCat("packed batch: ", parts...));
  };
  if (targets.size() != tokens.size() || positions.size() != tokens.size()) {
    return error(tokens.size(), " tokens, ", targets.size(), " targets, ", positions.size(),
                 " positions");
  }
  if (cu_seqlens.empty() || cu_seqlens.front() != 0 || cu_seqlens.back() != num_tokens()) {
    return error("cu_seqlens does not reach from 0 to ", num_tokens());
  }
  for (size_t p = 0; p + 1 < cu_seqlens.size(); ++p) {
    if (cu_seqlens[p] >= cu_seqlens[p + 1]) return error("cu_seqlens does not rise at piece ", p);
    // Rising and ending at T: every index below is in range only while no entry passes T.
    if (cu_seqlens[p + 1] > num_tokens()) return error("piece ", p, " ends beyond the tokens");
    for (int64_t i = cu_seqlens[p]; i < cu_seqlens[p + 1]; ++i) {
      const size_t at = static_cast<size_t>(i);
      if (positions[at] != i - cu_seqlens[p]) {
        return error("token ", i, " has position ", positions[at], " in a piece that starts at ",
                     cu_seqlens[p]);
      }
      if (tokens[at] < 0 || tokens[at] >= vocab_size) return error("token ", i, " is ", tokens[at]);
      if (targets[at] != kIgnoredTarget && (targets[at] < 0 || targets[at] >= vocab_size)) {
        return error("target ", i, " is ", targets[at]);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
