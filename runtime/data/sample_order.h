// Which tokens make up which sample: a function of the document lengths, the seed and the sample's
// global number alone. It does not know how many ranks there are, so a run that goes on with
// another number of them sees every sample exactly once all the same; the position to save is one
// number.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

// Tokens [offset, offset + length) of a document; length > 0.
struct Piece {
  int64_t document = 0;
  int64_t offset = 0;
  int64_t length = 0;

  bool operator==(const Piece&) const = default;
};

// The order of training. In each epoch the documents are laid end to end in an order drawn by
// Philox(seed, epoch), the stream is cut into windows of `sequence_length` tokens (the last is
// shorter if the total does not divide), and the windows are visited in a drawn order. Every token
// is the input of exactly one sample of each epoch.
//
// Memory: 8 bytes a document, and for each of the two epochs that are kept 12 bytes a document and
// 4 a window. A new epoch is drawn when it is first asked for, O(documents + windows); a sample
// then costs a binary search. Not safe from several threads: each takes its own.
class SampleOrder {
 public:
  // Documents of length 0 are passed over. Fails with a data error if there is no token at all, or
  // if there are 2^32 documents or windows.
  static absl::StatusOr<SampleOrder> Create(std::vector<int64_t> document_lengths,
                                            int64_t sequence_length, uint64_t seed);

  int64_t num_samples_per_epoch() const { return num_windows_; }
  int64_t sequence_length() const { return sequence_length_; }

  // Returns the pieces of global sample `sample` >= 0, in the order in which they are laid out;
  // they have sequence_length() tokens together, or fewer in the one sample that holds an epoch's
  // rest.
  std::vector<Piece> Sample(int64_t sample);

 private:
  struct Epoch {
    int64_t number;
    std::vector<uint32_t> documents;  // in stream order
    std::vector<int64_t> starts;      // [documents]: first stream position of each
    std::vector<uint32_t> windows;    // in the order of visits
  };

  SampleOrder(std::vector<int64_t> lengths, int64_t sequence_length, uint64_t seed, int64_t total)
      : lengths_(std::move(lengths)),
        sequence_length_(sequence_length),
        seed_(seed),
        total_tokens_(total),
        num_windows_(1 + (total - 1) / sequence_length) {}

  const Epoch& EpochAt(int64_t number);

  std::vector<int64_t> lengths_;
  int64_t sequence_length_;
  uint64_t seed_;
  int64_t total_tokens_;
  int64_t num_windows_;
  // Entry e % 2 holds epoch e: the steps around an epoch's end use two, and neither evicts the
  // other.
  std::array<std::unique_ptr<Epoch>, 2> epochs_;
};

// The order of evaluation: every document once, in the data set's order, cut into pieces of at most
// `sequence_length` tokens from its start on. A sample is one piece, so what a token is scored with
// does not depend on the documents around it. Safe from several threads.
class SequentialOrder {
 public:
  // Fails as SampleOrder::Create does.
  static absl::StatusOr<SequentialOrder> Create(const std::vector<int64_t>& document_lengths,
                                                int64_t sequence_length);

  int64_t num_samples() const { return first_samples_.back(); }

  // Returns the one piece of sample `sample` in [0, num_samples()).
  std::vector<Piece> Sample(int64_t sample) const;

 private:
  SequentialOrder() = default;

  std::vector<int64_t> lengths_;
  std::vector<int64_t> first_samples_;  // [documents + 1]
  int64_t sequence_length_ = 0;
};

}  // namespace evenkeel
