#include "scheduler/attention_search.h"

#include <algorithm>
#include <utility>

#include "scheduler/attention_traffic.h"

namespace evenkeel {
namespace {

// Shares and pieces to look at, a rank: what bounds the search's time, to about 6 us a rank.
constexpr int64_t kEffort = 600, kEffortOfOne = 8;
// Of what is bad about the documents at hand.
constexpr double kLeastGain = 1e-4;
// Of a share: less than this is none.
constexpr double kRounding = 1e-6;
// Servers of a document that may leave it in a step: those with the smallest shares.
constexpr size_t kMostLeaving = 3;
// How far apart what is sent and received may be: each is lowered for itself.
constexpr double kApart = 1e9;

class Search {
 public:
  Search(const AttentionPool& pool, int64_t shard_tokens, double tolerance, SharedWork* work)
      : pool_(pool),
        shared_(work->documents),
        kept_(work->kept),
        load_(work->load),
        low_(work->mean / (1 + tolerance)),
        high_(work->mean * (1 + tolerance)),
        traffic_(pool, shard_tokens),
        documents_of_(static_cast<size_t>(pool.num_ranks)),
        kept_of_(static_cast<size_t>(pool.num_ranks)),
        effort_(kEffort * pool.num_ranks) {}

  void Run() {
    for (size_t d = 0; d < shared_.size(); ++d) {
      Arrange(&shared_[d]);
      traffic_.Add(shared_[d]);
      for (const DocumentShare& share : shared_[d].shares) {
        documents_of_[static_cast<size_t>(share.server)].push_back(d);
      }
    }
    for (size_t i = 0; i < kept_.size(); ++i) {
      kept_of_[static_cast<size_t>(kept_[i].owner)].push_back(i);
    }
    traffic_.SetScale(kApart);
    for (bool better = true; better && effort_ > 0;) {
      better = false;
      for (const size_t d : HottestFirst()) {
        if (effort_ <= 0) break;
        while (effort_ > 0 && ImproveServers(d)) better = true;
        better |= ImproveOrder(d);
      }
    }
    DropMoved(&kept_);
  }

 private:
  const PooledDocument& Document(const SharedDocument& shared) const {
    return pool_.documents[static_cast<size_t>(shared.document)];
  }

  // Owners where their own queries are, the others between them, small shares first: those are
  // cheapest where the prefix is short.
  void Arrange(SharedDocument* shared) const {
    const PooledDocument& document = Document(*shared);
    if (shared->shares.size() < 2) return;
    double total = 0;
    for (const DocumentShare& share : shared->shares) total += share.seconds;
    const double pairs = CausalPairs(document.length - document.q_begin, document.length);
    std::vector<DocumentShare> owners, others = shared->shares;
    std::vector<double> starts;  // of the owners, seconds before their pieces
    for (int32_t p = 0; p < document.num_pieces; ++p) {
      const DocumentPiece& piece = pool_.pieces[static_cast<size_t>(document.first_piece + p)];
      for (DocumentShare& share : others) {
        if (share.server != piece.owner || share.seconds <= 0) continue;
        owners.push_back(share);
        const int64_t begin = std::max(piece.begin, document.q_begin);
        starts.push_back(total / pairs * CausalPairs(begin - document.q_begin, begin));
        share.seconds = 0;
      }
    }
    others.erase(std::remove_if(others.begin(), others.end(),
                                [](const DocumentShare& share) { return share.seconds <= 0; }),
                 others.end());
    std::sort(others.begin(), others.end(), [](const DocumentShare& a, const DocumentShare& b) {
      return a.seconds != b.seconds ? a.seconds < b.seconds : a.server < b.server;
    });
    shared->shares.clear();
    double before = 0;
    for (size_t owner = 0, other = 0; owner < owners.size() || other < others.size();) {
      const bool next_owner =
          owner < owners.size() && (starts[owner] <= before || other == others.size());
      shared->shares.push_back(next_owner ? owners[owner++] : others[other++]);
      before += shared->shares.back().seconds;
    }
  }

  std::vector<size_t> HottestFirst() {
    std::vector<std::pair<double, size_t>> heat;
    for (size_t d = 0; d < shared_.size(); ++d) {
      if (shared_[d].shares.size() > 1) heat.push_back({-traffic_.HeatOf(shared_[d]), d});
    }
    std::sort(heat.begin(), heat.end());
    std::vector<size_t> order;
    for (const auto& each : heat) order.push_back(each.second);
    return order;
  }

  // Each time that a document's traffic is counted.
  void Spend(const SharedDocument& shared) {
    effort_ -=
        static_cast<int64_t>(shared.shares.size()) + Document(shared).num_pieces + kEffortOfOne;
  }

  // Moves each share in turn to where it helps most.
  bool ImproveOrder(size_t d) {
    SharedDocument& shared = shared_[d];
    const size_t n = shared.shares.size();
    traffic_.Remove(shared);
    for (int i = 0; i < 3; ++i) Spend(shared);
    double least = traffic_.PainOf(shared);
    bool any = false;
    trial_ = shared;
    for (size_t from = 0; from < n && effort_ > 0; ++from) {
      bool better = false;
      const auto exchange = [&](size_t a, size_t b) {
        std::swap(trial_.shares[a], trial_.shares[b]);
        Spend(shared);
        const double pain = traffic_.PainOf(trial_);
        if (pain >= least * (1 - kLeastGain)) return;
        least = pain;
        best_ = trial_.shares;
        better = true;
      };
      // Step by step to the end, and to the front.
      for (size_t to = from + 1; to < n; ++to) exchange(to - 1, to);
      trial_.shares = shared.shares;
      for (size_t to = from; to-- > 0;) exchange(to + 1, to);
      if (better) shared.shares = best_;
      any |= better;
      trial_.shares = shared.shares;
    }
    traffic_.Add(shared);
    return any;
  }

  static std::vector<DocumentShare>::iterator Find(SharedDocument& shared, int32_t server) {
    return std::find_if(shared.shares.begin(), shared.shares.end(),
                        [&](const DocumentShare& share) { return share.server == server; });
  }

  // A step of ImproveServers: of `seconds`.
  struct Step {
    double gain = 0;
    int32_t leaves = 0, stays = 0;
    double seconds = 0;
    SharedDocument first;
    SharedDocument second;  // in return a share of it, if it has any shares
    size_t second_index = 0;
    std::vector<size_t> bundle;  // or kept documents, possibly none
  };

  // Takes a server out of the document: another one of its servers takes its share, and gives it as
  // much of another document in return, or small documents of its own, or nothing if loads allow
  // it.
  bool ImproveServers(size_t d) {
    SharedDocument& shared = shared_[d];
    if (shared.shares.size() < 2) return false;
    traffic_.Remove(shared);
    for (int i = 0; i < 3; ++i) Spend(shared);
    const double alone = traffic_.PainOf(shared);
    Step step;
    smallest_ = shared.shares;
    const size_t few = std::min(kMostLeaving, smallest_.size());
    std::partial_sort(smallest_.begin(), smallest_.begin() + static_cast<std::ptrdiff_t>(few),
                      smallest_.end(), [](const DocumentShare& a, const DocumentShare& b) {
                        return a.seconds != b.seconds ? a.seconds < b.seconds : a.server < b.server;
                      });
    for (size_t i = 0; i < few; ++i) {
      const DocumentShare leaves = smallest_[i];
      for (const DocumentShare& stays : shared.shares) {
        if (leaves.server == stays.server || effort_ <= 0) continue;
        trial_ = shared;
        Find(trial_, stays.server)->seconds += leaves.seconds;
        trial_.shares.erase(Find(trial_, leaves.server));
        TryBundle(leaves, stays.server, alone, &step);
        for (const size_t other : documents_of_[static_cast<size_t>(stays.server)]) {
          if (other != d) TryReturn(shared, leaves, stays.server, other, &step);
        }
      }
    }
    if (step.gain > 0) {
      Replace(d, step.first);
      if (!step.second.shares.empty()) {
        traffic_.Remove(shared_[step.second_index]);
        Replace(step.second_index, step.second);
        traffic_.Add(shared_[step.second_index]);
      }
    }
    traffic_.Add(shared_[d]);
    if (step.gain > 0 && step.second.shares.empty()) GiveBundle(step);
    return step.gain > 0;
  }

  // With trial_: what if `leaves` gets so many of the documents that `stays` keeps that loads stay
  // in bounds?
  void TryBundle(const DocumentShare& leaves, int32_t stays, double now, Step* step) {
    const auto a = static_cast<size_t>(leaves.server), b = static_cast<size_t>(stays);
    const double least = std::max(low_ * pool_.speed[a] - (load_[a] - leaves.seconds),
                                  load_[b] + leaves.seconds - high_ * pool_.speed[b]);
    const double most = std::min(high_ * pool_.speed[a] - (load_[a] - leaves.seconds),
                                 load_[b] + leaves.seconds - low_ * pool_.speed[b]);
    bundle_.clear();
    double seconds = 0, bytes = 0;
    for (const size_t i : KeptBy(stays)) {
      if (seconds >= least) break;
      if (seconds + kept_[i].seconds > most) continue;
      seconds += kept_[i].seconds;
      bundle_.push_back(i);
      const PooledDocument& document = pool_.documents[static_cast<size_t>(kept_[i].document)];
      bytes += static_cast<double>(pool_.bytes.q * (document.length - document.q_begin) +
                                   pool_.bytes.kv * document.length);
    }
    if (seconds < least || seconds > most) return;
    Spend(trial_);
    const double gain = now - traffic_.PainOf(trial_, nullptr, {stays, leaves.server, bytes});
    if (gain <= std::max(step->gain, kLeastGain * now)) return;
    *step = {gain, leaves.server, stays, leaves.seconds, trial_, {}, 0, bundle_};
  }

  // The documents that a server keeps, those with the most work first.
  const std::vector<size_t>& KeptBy(int32_t server) {
    std::vector<size_t>& kept = kept_of_[static_cast<size_t>(server)];
    const auto more = [&](size_t a, size_t b) {
      return kept_[a].seconds != kept_[b].seconds ? kept_[a].seconds > kept_[b].seconds : a < b;
    };
    if (!std::is_sorted(kept.begin(), kept.end(), more)) std::sort(kept.begin(), kept.end(), more);
    return kept;
  }

  void GiveBundle(const Step& step) {
    auto& less = load_[static_cast<size_t>(step.leaves)];
    auto& more = load_[static_cast<size_t>(step.stays)];
    less -= step.seconds;
    more += step.seconds;
    auto& kept_by = kept_of_[static_cast<size_t>(step.stays)];
    for (const size_t i : step.bundle) {
      SharedDocument moved;
      moved.document = kept_[i].document;
      moved.shares = {{step.leaves, kept_[i].seconds}};
      traffic_.Add(moved);
      documents_of_[static_cast<size_t>(step.leaves)].push_back(shared_.size());
      shared_.push_back(std::move(moved));
      less += kept_[i].seconds;
      more -= kept_[i].seconds;
      kept_[i].document = KeptDocument::kMoved;
      kept_by.erase(std::find(kept_by.begin(), kept_by.end(), i));
    }
  }

  // With trial_ for `shared`, where `stays` has taken the share of `leaves`: what if `leaves` gets
  // as much of the document `other`, before or after what stays of it?
  void TryReturn(const SharedDocument& shared, const DocumentShare& leaves, int32_t stays,
                 size_t other, Step* step) {
    SharedDocument& second = shared_[other];
    const auto giver = Find(second, stays);
    if (giver->seconds < leaves.seconds) return;
    const auto place = giver - second.shares.begin();
    const bool all = giver->seconds - leaves.seconds < kRounding * leaves.seconds;
    const bool has = Find(second, leaves.server) != second.shares.end();
    for (int i = 0; i < 3; ++i) Spend(second);
    traffic_.Remove(second);
    const double now = traffic_.PainOf(shared, &second, {});
    for (const int after : {0, 1}) {
      if (after == 1 && (all || has)) break;
      other_trial_ = second;
      const auto from = other_trial_.shares.begin() + place;
      from->seconds -= leaves.seconds;
      if (has) {
        Find(other_trial_, leaves.server)->seconds += leaves.seconds;
        if (all) other_trial_.shares.erase(from);
      } else if (all) {
        *from = leaves;
      } else {
        other_trial_.shares.insert(from + after, leaves);
      }
      Spend(trial_);
      Spend(other_trial_);
      const double gain = now - traffic_.PainOf(trial_, &other_trial_, {});
      if (gain > std::max(step->gain, kLeastGain * now)) {
        *step = {gain, leaves.server, stays, leaves.seconds, trial_, other_trial_, other, {}};
      }
    }
    traffic_.Add(second);
  }

  void Replace(size_t d, const SharedDocument& by) {
    for (const DocumentShare& share : shared_[d].shares) {
      auto& documents = documents_of_[static_cast<size_t>(share.server)];
      documents.erase(std::find(documents.begin(), documents.end(), d));
    }
    shared_[d] = by;
    for (const DocumentShare& share : by.shares) {
      documents_of_[static_cast<size_t>(share.server)].push_back(d);
    }
  }

  const AttentionPool& pool_;
  std::vector<SharedDocument>& shared_;
  std::vector<KeptDocument>& kept_;
  std::vector<double>& load_;
  const double low_, high_;  // loads per speed that are let be
  AttentionTraffic traffic_;
  std::vector<std::vector<size_t>> documents_of_;  // of each server, indices into shared_
  std::vector<std::vector<size_t>> kept_of_;       // likewise, into kept_
  int64_t effort_;
  SharedDocument trial_, other_trial_;
  std::vector<size_t> bundle_;
  std::vector<DocumentShare> smallest_;
  std::vector<DocumentShare> best_;
};

}  // namespace

void LowerTraffic(const AttentionPool& pool, int64_t shard_tokens, double tolerance,
                  SharedWork* work) {
  Search(pool, shard_tokens, tolerance, work).Run();
}

}  // namespace evenkeel
