#include "launch/document_batches.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/philox.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"

namespace evenkeel {
namespace {

constexpr int64_t kLong = 65536;  // tokens
constexpr int64_t kMaxLength = int64_t{1} << 32;
constexpr int kCopiesOfLong = 4;
constexpr size_t kDrawn = 10000;     // documents of the pretraining list
constexpr double kElongated = 0.30;  // of the long documents of ProLong
constexpr uint64_t kDrawStream = 1;

// The first `count` of a random order of [0, n).
std::vector<size_t> Draw(size_t n, size_t count, int64_t seed) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  const Philox random(static_cast<uint64_t>(seed), kDrawStream);
  count = std::min(count, n);
  for (size_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + static_cast<size_t>(random.Bits(i) % (n - i))]);
  }
  order.resize(count);
  return order;
}

}  // namespace

absl::StatusOr<std::vector<int64_t>> ReadLengths(const std::string& file) {
  const absl::StatusOr<nlohmann::json> read = ReadJsonFile(file);
  if (!read.ok()) return WithExitCode(read.status(), ExitCode::kData);
  const nlohmann::json& json = *read;
  const auto wrong = [&file](const std::string& what) {
    return WithExitCode(absl::InvalidArgumentError(absl::StrCat(file, ": ", what)),
                        ExitCode::kData);
  };
  if (!json.is_array() || json.empty()) {
    return wrong("expected a list of document lengths, such as [4096, 131072]");
  }
  std::vector<int64_t> lengths;
  for (const nlohmann::json& entry : json) {
    if (!entry.is_number_integer() || entry.get<int64_t>() < 1 ||
        entry.get<int64_t>() > kMaxLength) {
      return wrong(absl::StrCat("entry ", lengths.size(), " is ", entry.dump(),
                                "; lengths are whole numbers from 1 to ", kMaxLength));
    }
    lengths.push_back(entry.get<int64_t>());
  }
  return lengths;
}

std::vector<int64_t> PrepareLengths(const std::vector<int64_t>& lengths, LengthRecipe recipe,
                                    int64_t context, int64_t seed) {
  if (recipe == LengthRecipe::kAsIs) return lengths;
  std::vector<int64_t> short_ones, prepared;
  for (int64_t length : lengths) {
    if (length < kLong) {
      short_ones.push_back(length);
    } else {
      prepared.insert(prepared.end(), kCopiesOfLong, length);
    }
  }
  short_ones.resize(short_ones.size() / 2);
  if (recipe == LengthRecipe::kProLong) {
    const size_t count = static_cast<size_t>(kElongated * static_cast<double>(prepared.size()));
    for (size_t index : Draw(prepared.size(), count, seed)) prepared[index] = context;
    prepared.insert(prepared.end(), short_ones.begin(), short_ones.end());
    return prepared;
  }
  prepared.insert(prepared.end(), short_ones.begin(), short_ones.end());
  std::vector<int64_t> drawn;
  for (size_t index : Draw(prepared.size(), kDrawn, seed)) {
    drawn.push_back(std::max<int64_t>(1, prepared[index] * context / kLong));
  }
  return drawn;
}

std::vector<std::vector<int64_t>> CutBatches(const std::vector<int64_t>& documents, int64_t context,
                                             int64_t samples_per_batch, int64_t batches) {
  std::vector<std::vector<int64_t>> cut(static_cast<size_t>(batches));
  const int64_t batch_tokens = context * samples_per_batch;
  size_t next = 0;
  int64_t left = 0;  // of the document at hand
  for (std::vector<int64_t>& batch : cut) {
    for (int64_t at = 0; at < batch_tokens;) {
      if (left == 0) {
        left = documents[next];
        next = (next + 1) % documents.size();
      }
      const int64_t taken = std::min(left, context - at % context);
      batch.push_back(taken);
      at += taken;
      left -= taken;
    }
  }
  return cut;
}

}  // namespace evenkeel
