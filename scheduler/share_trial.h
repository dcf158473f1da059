// Changes of who computes what of several documents, tried together: copies of the documents'
// shares and of the loads, beside the ones that hold. Pure and deterministic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler/attention_pool.h"
#include "scheduler/attention_shares.h"

namespace evenkeel {

// Numbers that are the same on every rank: a linear congruential generator (Knuth's MMIX), of whose
// state the upper half is used.
class Draws {
 public:
  // One of [0, n), n < 2^31.
  size_t Below(size_t n) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>((state_ >> 33) * static_cast<uint64_t>(n) >> 31);
  }
  bool OneIn(size_t n) { return Below(n) == 0; }

 private:
  uint64_t state_ = 1;
};

// A share of the server, drawn from those but `except`; shares.size() if there is none.
size_t DrawShareOf(const SharedDocument& document, int32_t server, size_t except, Draws* draws);

class ShareTrial {
 public:
  // What is referred to has to outlive the trial. `least`: seconds below which a share is too small
  // to be cut off another one.
  ShareTrial(const AttentionPool& pool, const std::vector<SharedDocument>& shared,
             const std::vector<double>& load, double least, Draws* draws)
      : pool_(pool), shared_(shared), load_(load), least_(least), draws_(*draws) {}

  void Clear();

  // As changed so far. References hold until another document is asked for.
  SharedDocument& Document(size_t d);
  double& Load(int32_t server);

  // `seconds` of share i of document d to another server: to a share that it has, or to a new one
  // beside share i.
  void Transfer(size_t d, size_t i, int32_t to, double seconds);
  // Part of share i to another place in the document, on the same server.
  void Shift(size_t d, size_t i);
  // Two shares change places, or one moves.
  void Reorder(size_t d);
  // Owners compute their own queries as far as their shares go; others what is left, in order. A
  // share that has to be divided for that may be as small as it comes.
  void PutOwnersFirst(size_t d);

  // Whether Transfer and Shift made and left no share of less than `least`.
  bool is_cuttable() const { return is_cuttable_; }
  // Of `documents`, the first size() are changed: the shares of shared[indices()[i]].
  size_t size() const { return indices_.size(); }
  const std::vector<size_t>& indices() const { return indices_; }
  const std::vector<SharedDocument>& documents() const { return documents_; }
  const std::vector<std::pair<int32_t, double>>& loads() const { return loads_; }

 private:
  void JoinNeighbours(std::vector<DocumentShare>* shares) const;

  const AttentionPool& pool_;
  const std::vector<SharedDocument>& shared_;
  const std::vector<double>& load_;
  const double least_;
  Draws& draws_;
  bool is_cuttable_ = true;
  std::vector<size_t> indices_;
  std::vector<SharedDocument> documents_;  // longer than indices_: memory is used again
  std::vector<std::pair<int32_t, double>> loads_;
  std::vector<DocumentShare> totals_, slots_;  // of PutOwnersFirst
};

}  // namespace evenkeel
