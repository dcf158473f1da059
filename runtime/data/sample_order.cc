#include "runtime/data/sample_order.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/philox.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"

namespace evenkeel {
namespace {

constexpr uint64_t kSampleStream = uint64_t{0x53414D50} << 32;  // "SAMP", then 2 epoch + purpose
constexpr uint64_t kDocumentOrder = 0, kWindowOrder = 1;

// Fisher-Yates from the end; step i draws from [0, i] as the high half of a 64 x 64 bit product,
// whose bias, below i / 2^64, cannot be seen.
std::vector<uint32_t> DrawPermutation(uint64_t seed, int64_t epoch, uint64_t purpose, int64_t n) {
  const Philox random(seed, kSampleStream + 2 * static_cast<uint64_t>(epoch) + purpose);
  std::vector<uint32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0u);
  for (uint64_t i = static_cast<uint64_t>(n); i-- > 1;) {
    const auto product = static_cast<unsigned __int128>(random.Bits(i)) * (i + 1);
    std::swap(order[i], order[static_cast<uint64_t>(product >> 64)]);
  }
  return order;
}

// Returns the tokens of all documents.
absl::StatusOr<int64_t> CheckedTotal(const std::vector<int64_t>& lengths, int64_t sequence_length) {
  if (sequence_length < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the sequence length is ", sequence_length, "; it must be at least 1"));
  }
  int64_t total = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > std::numeric_limits<int64_t>::max() - total) {
      return DataError(absl::StrCat("document ", i, " has an impossible length, ", lengths[i]));
    }
    total += lengths[i];
  }
  if (total == 0) {
    return DataError(absl::StrCat("the data set's ", lengths.size(), " documents have no tokens"));
  }
  return total;
}

}  // namespace

absl::StatusOr<SampleOrder> SampleOrder::Create(std::vector<int64_t> document_lengths,
                                                int64_t sequence_length, uint64_t seed) {
  EK_ASSIGN_OR_RETURN(const int64_t total, CheckedTotal(document_lengths, sequence_length));
  constexpr int64_t kMax = std::numeric_limits<uint32_t>::max();
  if (static_cast<int64_t>(document_lengths.size()) > kMax ||
      (total - 1) / sequence_length >= kMax) {
    return DataError(absl::StrCat(document_lengths.size(), " documents of ", total,
                                  " tokens in sequences of ", sequence_length,
                                  " are more than 2^32 documents or samples an epoch"));
  }
  return SampleOrder(std::move(document_lengths), sequence_length, seed, total);
}

const SampleOrder::Epoch& SampleOrder::EpochAt(int64_t number) {
  std::unique_ptr<Epoch>& slot = epochs_[static_cast<size_t>(number % 2)];
  if (slot != nullptr && slot->number == number) return *slot;
  slot.reset();  // its memory is free before the new epoch's is taken
  auto epoch = std::make_unique<Epoch>();
  epoch->number = number;
  epoch->documents =
      DrawPermutation(seed_, number, kDocumentOrder, static_cast<int64_t>(lengths_.size()));
  epoch->starts.reserve(lengths_.size());
  int64_t start = 0;
  for (const uint32_t document : epoch->documents) {
    epoch->starts.push_back(start);
    start += lengths_[document];
  }
  epoch->windows = DrawPermutation(seed_, number, kWindowOrder, num_windows_);
  slot = std::move(epoch);
  return *slot;
}

std::vector<Piece> SampleOrder::Sample(int64_t sample) {
  EK_CHECK(sample >= 0) << sample;
  const Epoch& epoch = EpochAt(sample / num_windows_);
  const int64_t window = epoch.windows[static_cast<size_t>(sample % num_windows_)];
  int64_t position = window * sequence_length_;
  // Not position + sequence_length_: that may overflow for a window longer than the data set.
  int64_t left = std::min(sequence_length_, total_tokens_ - position);
  // The last document that starts at or before the position; empty ones before it start there too.
  size_t i =
      static_cast<size_t>(std::upper_bound(epoch.starts.begin(), epoch.starts.end(), position) -
                          epoch.starts.begin() - 1);
  std::vector<Piece> pieces;
  for (; left > 0; ++i) {
    const int64_t document = epoch.documents[i];
    const int64_t offset = position - epoch.starts[i];
    const int64_t length = std::min(left, lengths_[static_cast<size_t>(document)] - offset);
    if (length == 0) continue;
    pieces.push_back({document, offset, length});
    position += length;
    left -= length;
  }
  return pieces;
}

absl::StatusOr<SequentialOrder> SequentialOrder::Create(
    const std::vector<int64_t>& document_lengths, int64_t sequence_length) {
  EK_RETURN_IF_ERROR(CheckedTotal(document_lengths, sequence_length).status());
  SequentialOrder order;
  order.lengths_ = document_lengths;
  order.sequence_length_ = sequence_length;
  order.first_samples_.assign(1, 0);
  for (const int64_t length : document_lengths) {
    const int64_t pieces = length == 0 ? 0 : 1 + (length - 1) / sequence_length;
    order.first_samples_.push_back(order.first_samples_.back() + pieces);
  }
  return order;
}

std::vector<Piece> SequentialOrder::Sample(int64_t sample) const {
  EK_CHECK(sample >= 0 && sample < num_samples()) << sample;
  const int64_t document = std::upper_bound(first_samples_.begin(), first_samples_.end(), sample) -
                           first_samples_.begin() - 1;
  const size_t at = static_cast<size_t>(document);
  const int64_t offset = (sample - first_samples_[at]) * sequence_length_;
  return {{document, offset, std::min(sequence_length_, lengths_[at] - offset)}};
}

}  // namespace evenkeel
