#include "runtime/comm/agreement.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status_macros.h"
#include "runtime/comm/rank_list.h"

namespace evenkeel {
namespace {

constexpr size_t kMaxShownValue = 200;

// Text travels in words of four bytes, its length apart.
std::vector<int32_t> ToWords(const std::string& text) {
  std::vector<int32_t> words((text.size() + 3) / 4);
  if (!text.empty()) std::memcpy(words.data(), text.data(), text.size());
  return words;
}

// The beginning of the first line that is not the same in all of `texts`, whose order is that of a
// map: what the first and the last have in common, all have.
size_t FirstDifference(const std::string& first, const std::string& last) {
  const size_t common =
      std::mismatch(first.begin(), first.end(), last.begin(), last.end()).first - first.begin();
  const size_t line_end = common == 0 ? std::string::npos : first.rfind('\n', common - 1);
  return line_end == std::string::npos ? 0 : line_end + 1;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> AllGatherStrings(Communicator& comm,
                                                          const std::string& mine,
                                                          const std::string& label) {
  const auto size = static_cast<size_t>(comm.size());
  std::vector<int64_t> lengths(size);
  int64_t length = static_cast<int64_t>(mine.size());
  EK_RETURN_IF_ERROR(comm.AllGather(ConstTensorView(&length, DType::kI64, {1}),
                                    TensorView(lengths.data(), DType::kI64, {comm.size()}), label));
  std::vector<int64_t> num_words(size);
  int64_t total = 0;
  for (size_t r = 0; r < size; ++r) {
    num_words[r] = (lengths[r] + 3) / 4;
    total += num_words[r];
  }
  const std::vector<int32_t> words = ToWords(mine);
  std::vector<int32_t> all(static_cast<size_t>(total));
  EK_RETURN_IF_ERROR(comm.AllGather(
      ConstTensorView(words.data(), DType::kI32, {static_cast<int64_t>(words.size())}),
      TensorView(all.data(), DType::kI32, {total}), num_words, label));
  std::vector<std::string> texts(size);
  const int32_t* position = all.data();
  for (size_t r = 0; r < size; ++r) {
    texts[r].resize(static_cast<size_t>(lengths[r]));
    if (lengths[r] > 0) std::memcpy(texts[r].data(), position, texts[r].size());
    position += num_words[r];
  }
  return texts;
}

absl::StatusOr<std::string> BroadcastString(Communicator& comm, const std::string& text, int root,
                                            const std::string& label) {
  int64_t length = static_cast<int64_t>(text.size());
  EK_RETURN_IF_ERROR(comm.Broadcast(TensorView(&length, DType::kI64, {1}), root, label));
  std::vector<int32_t> words = ToWords(text);
  words.resize(static_cast<size_t>((length + 3) / 4));
  EK_RETURN_IF_ERROR(comm.Broadcast(
      TensorView(words.data(), DType::kI32, {static_cast<int64_t>(words.size())}), root, label));
  std::string result(static_cast<size_t>(length), '\0');
  if (length > 0) std::memcpy(result.data(), words.data(), result.size());
  return result;
}

absl::Status AgreeOnString(Communicator& comm, const std::string& value, const std::string& what) {
  EK_ASSIGN_OR_RETURN(const std::vector<std::string> values, AllGatherStrings(comm, value, what));
  std::map<std::string, std::vector<int>> ranks_of;
  for (int r = 0; r < comm.size(); ++r) ranks_of[values[static_cast<size_t>(r)]].push_back(r);
  if (ranks_of.size() == 1) return absl::OkStatus();
  const size_t begin = FirstDifference(ranks_of.begin()->first, ranks_of.rbegin()->first);
  std::vector<std::string> parts;
  for (const auto& [text, ranks] : ranks_of) {
    const std::string line = text.substr(begin, text.find('\n', begin) - begin);
    parts.push_back(absl::StrCat(FormatRanks(ranks), ranks.size() == 1 ? " has " : " have ",
                                 absl::StripAsciiWhitespace(line.substr(0, kMaxShownValue))));
  }
  return WithExitCode(absl::FailedPreconditionError(absl::StrCat("the ranks differ in ", what, ": ",
                                                                 absl::StrJoin(parts, "; "))),
                      ExitCode::kUsage);
}

absl::Status AgreeOnStatus(Communicator& comm, const absl::Status& status,
                           const std::string& label) {
  const int64_t mine[2] = {static_cast<int64_t>(status.code()),
                           static_cast<int64_t>(ExitCodeOf(status))};
  std::vector<int64_t> all(2 * static_cast<size_t>(comm.size()));
  EK_RETURN_IF_ERROR(comm.AllGather(ConstTensorView(mine, DType::kI64, {1, 2}),
                                    TensorView(all.data(), DType::kI64, {comm.size(), 2}), label));
  std::vector<int> failed, stopped;
  for (int r = 0; r < comm.size(); ++r) {
    const size_t at = 2 * static_cast<size_t>(r);
    if (all[at] == static_cast<int64_t>(absl::StatusCode::kOk)) continue;
    const bool is_stop = all[at + 1] == static_cast<int64_t>(ExitCode::kPreempted);
    (is_stop ? stopped : failed).push_back(r);
  }
  if (failed.empty()) failed = stopped;
  if (failed.empty()) return absl::OkStatus();
  const int worst = failed.front();
  EK_ASSIGN_OR_RETURN(std::string message,
                      BroadcastString(comm, std::string(status.message()), worst, label));
  // What all ranks say is nothing special to one of them.
  int64_t is_own = status.message() == message ? 1 : 0;
  EK_RETURN_IF_ERROR(comm.AllReduce(TensorView(&is_own, DType::kI64, {1}), ReduceOp::kMin, label));
  if (is_own == 0) {
    message = absl::StrCat("rank ", worst, ": ", message);
    const std::vector<int> others(failed.begin() + 1, failed.end());
    if (!others.empty()) {
      absl::StrAppend(&message, " (also failed: ", FormatRanks(others), ")");
    }
  }
  const size_t at = 2 * static_cast<size_t>(worst);
  return WithExitCode(absl::Status(static_cast<absl::StatusCode>(all[at]), message),
                      static_cast<ExitCode>(all[at + 1]));
}

}  // namespace evenkeel
