#include "scheduler/share_trial.h"

#include <algorithm>

#include "scheduler/attention_cost.h"

namespace evenkeel {
namespace {

// Of a share or a document: less than this is none.
constexpr double kRounding = 1e-9;
constexpr int32_t kFree = -1;  // in place of an owner that keeps its queries

std::ptrdiff_t At(size_t i) {
  return static_cast<std::ptrdiff_t>(i);
}

}  // namespace

size_t DrawShareOf(const SharedDocument& document, int32_t server, size_t except, Draws* draws) {
  size_t found = document.shares.size(), count = 0;
  for (size_t i = 0; i < document.shares.size(); ++i) {
    if (document.shares[i].server != server || i == except) continue;
    if (draws->OneIn(++count)) found = i;
  }
  return found;
}

void ShareTrial::Clear() {
  is_cuttable_ = true;
  indices_.clear();
  loads_.clear();
}

SharedDocument& ShareTrial::Document(size_t d) {
  for (size_t i = 0; i < indices_.size(); ++i) {
    if (indices_[i] == d) return documents_[i];
  }
  indices_.push_back(d);
  if (documents_.size() < indices_.size()) documents_.emplace_back();
  SharedDocument& copy = documents_[indices_.size() - 1];
  copy.document = shared_[d].document;
  copy.shares.assign(shared_[d].shares.begin(), shared_[d].shares.end());
  return copy;
}

double& ShareTrial::Load(int32_t server) {
  for (auto& [known, load] : loads_) {
    if (known == server) return load;
  }
  loads_.push_back({server, load_[static_cast<size_t>(server)]});
  return loads_.back().second;
}

void ShareTrial::JoinNeighbours(std::vector<DocumentShare>* shares) const {
  size_t count = 0;
  for (const DocumentShare& share : *shares) {
    if (count > 0 && (*shares)[count - 1].server == share.server) {
      (*shares)[count - 1].seconds += share.seconds;
    } else {
      (*shares)[count++] = share;
    }
  }
  shares->resize(count);
}

void ShareTrial::Transfer(size_t d, size_t i, int32_t to, double seconds) {
  SharedDocument& document = Document(d);
  auto& shares = document.shares;
  const bool all = seconds > shares[i].seconds * (1 - kRounding);
  if (all) seconds = shares[i].seconds;
  if (!all && std::min(seconds, shares[i].seconds - seconds) < least_) is_cuttable_ = false;
  Load(shares[i].server) -= seconds;
  Load(to) += seconds;
  const size_t j = DrawShareOf(document, to, i, &draws_);
  const bool joins = j < shares.size() && !draws_.OneIn(3);
  if (joins) shares[j].seconds += seconds;
  if (!all) {
    shares[i].seconds -= seconds;
    if (!joins) shares.insert(shares.begin() + At(i + draws_.Below(2)), {to, seconds});
  } else if (joins) {
    shares.erase(shares.begin() + At(i));
  } else {
    shares[i].server = to;
  }
  JoinNeighbours(&shares);
}

void ShareTrial::Shift(size_t d, size_t i) {
  SharedDocument& document = Document(d);
  auto& shares = document.shares;
  const int32_t server = shares[i].server;
  double seconds = shares[i].seconds;
  for (size_t halvings = draws_.Below(6); halvings > 0; --halvings) seconds /= 2;
  const bool all = seconds == shares[i].seconds;
  if (seconds < least_ || (!all && shares[i].seconds - seconds < least_)) is_cuttable_ = false;
  shares[i].seconds -= seconds;
  const size_t j = DrawShareOf(document, server, i, &draws_);
  if (j < shares.size() && !draws_.OneIn(3)) {
    shares[j].seconds += seconds;
    if (all) shares.erase(shares.begin() + At(i));
  } else {
    if (all) shares.erase(shares.begin() + At(i));
    shares.insert(shares.begin() + At(draws_.Below(shares.size() + 1)), {server, seconds});
  }
  JoinNeighbours(&shares);
}

void ShareTrial::Reorder(size_t d) {
  auto& shares = Document(d).shares;
  const size_t i = draws_.Below(shares.size()), j = draws_.Below(shares.size());
  const auto begin = shares.begin();
  if (draws_.OneIn(2)) {
    std::swap(shares[i], shares[j]);
  } else if (i < j) {
    std::rotate(begin + At(i), begin + At(i + 1), begin + At(j + 1));
  } else {
    std::rotate(begin + At(j), begin + At(i), begin + At(i + 1));
  }
  JoinNeighbours(&shares);
}

void ShareTrial::PutOwnersFirst(size_t d) {
  SharedDocument& shared = Document(d);
  const PooledDocument& document = pool_.documents[static_cast<size_t>(shared.document)];
  totals_.clear();
  double total = 0;
  for (const DocumentShare& share : shared.shares) {
    total += share.seconds;
    const auto same = [&](const DocumentShare& other) { return other.server == share.server; };
    const auto found = std::find_if(totals_.begin(), totals_.end(), same);
    if (found == totals_.end()) {
      totals_.push_back(share);
    } else {
      found->seconds += share.seconds;
    }
  }
  // So that one that is tried again differs: an exchange, an owner that is like the others, and
  // whether owners have the first or the last of their queries.
  if (draws_.OneIn(2)) {
    std::swap(totals_[draws_.Below(totals_.size())], totals_[draws_.Below(totals_.size())]);
  }
  const size_t except = draws_.OneIn(2) ? draws_.Below(totals_.size()) : totals_.size();
  const bool first = !draws_.OneIn(4);

  const double seconds_per_pair =
      total / CausalPairs(document.length - document.q_begin, document.length);
  slots_.clear();
  for (int32_t p = 0; p < document.num_pieces; ++p) {
    const DocumentPiece& piece = pool_.pieces[static_cast<size_t>(document.first_piece + p)];
    const int64_t begin = std::max(piece.begin, document.q_begin);
    const int64_t end = piece.begin + piece.length;
    if (begin >= end) continue;
    const double seconds = seconds_per_pair * CausalPairs(end - begin, end);
    double kept = 0;
    for (size_t i = 0; i < totals_.size(); ++i) {
      if (totals_[i].server != piece.owner || i == except) continue;
      kept = std::min(totals_[i].seconds, seconds);
      if (kept < least_) kept = 0;
      totals_[i].seconds -= kept;
    }
    if (first && kept > 0) slots_.push_back({piece.owner, kept});
    if (kept < seconds) slots_.push_back({kFree, seconds - kept});
    if (!first && kept > 0) slots_.push_back({piece.owner, kept});
  }
  shared.shares.clear();
  size_t next = 0;  // of totals_, which may have something left
  for (const DocumentShare& slot : slots_) {
    if (slot.server != kFree) {
      shared.shares.push_back(slot);
      continue;
    }
    double left = slot.seconds;
    while (left > kRounding * total && next < totals_.size()) {
      const double seconds = std::min(left, totals_[next].seconds);
      if (seconds > 0) shared.shares.push_back({totals_[next].server, seconds});
      left -= seconds;
      totals_[next].seconds -= seconds;
      if (totals_[next].seconds <= kRounding * total) ++next;
    }
  }
  JoinNeighbours(&shared.shares);
}

}  // namespace evenkeel
