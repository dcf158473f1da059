#include "scheduler/attention_exchange.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "scheduler/attention_traffic.h"
#include "scheduler/share_trial.h"

namespace evenkeel {
namespace {

// Shares to look at: for each of the first ranks, and for each pair of ranks (beyond 512 ranks in
// proportion to ranks). 0.2 ms with 8 ranks, 0.4 ms with 64, 4 ms with 512.
constexpr int64_t kEffortOfFirst = 2500, kFirstRanks = 8, kEffortOfPair = 1, kPairedRanks = 512;
constexpr int64_t kEffortOfDraw = 4, kEffortOfOne = 8;
// The busiest side is what ranks wait for: in the first half of it the other side counts as if its
// busiest rank had at least a fourth of that. In the second half each side is lowered for itself.
constexpr double kMostApart = 4, kApart = 1e9;
// Of the busiest rank's bytes: what ranks have at least whose documents are changed.
constexpr double kHot = 0.85;
// Of the mean load: smaller shares are not cut off others, as shards are too coarse for them.
constexpr double kLeastShare = 0.04;
constexpr double kLeastGain = 1e-6;
// Of a bound, what loads may miss it by in rounding.
constexpr double kRounding = 1e-9;
// Servers that a change may go through after the first two.
constexpr int kLongestChain = 3;

class Exchange {
 public:
  Exchange(const AttentionPool& pool, int64_t shard_tokens, double tolerance, SharedWork* work)
      : pool_(pool),
        shared_(work->documents),
        kept_(work->kept),
        load_(work->load),
        low_(work->mean / (1 + tolerance)),
        high_(work->mean * (1 + tolerance)),
        traffic_(pool, shard_tokens),
        documents_of_(load_.size()),
        owned_by_(load_.size()),
        kept_of_(load_.size()),
        trial_(pool, shared_, load_, kLeastShare * work->mean, &draws_) {}

  void Run() {
    for (size_t d = 0; d < shared_.size(); ++d) Enter(d);
    for (size_t i = 0; i < kept_.size(); ++i) {
      kept_of_[static_cast<size_t>(kept_[i].owner)].push_back(i);
    }
    const auto more = [&](size_t a, size_t b) {
      return kept_[a].seconds != kept_[b].seconds ? kept_[a].seconds > kept_[b].seconds : a < b;
    };
    for (std::vector<size_t>& kept : kept_of_) std::sort(kept.begin(), kept.end(), more);
    const int64_t ranks = pool_.num_ranks;
    const int64_t effort = kEffortOfFirst * std::min(ranks, kFirstRanks) +
                           kEffortOfPair * ranks * std::min(ranks, kPairedRanks);
    Lower(effort / 2, kMostApart);
    Lower(effort / 2, kApart);
    DropMoved(&kept_);
  }

 private:
  // A kept document that goes to a server.
  struct Gift {
    size_t kept = 0;
    int32_t to = 0;
  };

  void Lower(int64_t effort, double most_apart) {
    traffic_.SetScale(most_apart);
    traffic_.FindBusy(kHot, &hot_);
    while (effort > 0 && !hot_.empty()) {
      trial_.Clear();
      gifts_.clear();
      effort -= kEffortOfDraw;
      if (!Draw() || !trial_.is_cuttable() || !IsInBounds()) continue;
      for (size_t i = 0; i < trial_.size(); ++i) {
        effort -= 2 * (kEffortOfOne + static_cast<int64_t>(trial_.documents()[i].shares.size()));
      }
      if (Gain() > kLeastGain) Apply();
    }
  }

  // Lists a document that is new, or has changed, with its servers and owners.
  void Enter(size_t d) {
    traffic_.Add(shared_[d]);
    for (const DocumentShare& share : shared_[d].shares) {
      auto& documents = documents_of_[static_cast<size_t>(share.server)];
      if (std::find(documents.begin(), documents.end(), d) == documents.end()) {
        documents.push_back(d);
      }
    }
    const PooledDocument& document = pool_.documents[static_cast<size_t>(shared_[d].document)];
    for (int32_t p = 0; p < document.num_pieces; ++p) {
      const auto piece = static_cast<size_t>(document.first_piece + p);
      auto& owned = owned_by_[static_cast<size_t>(pool_.pieces[piece].owner)];
      if (std::find(owned.begin(), owned.end(), d) == owned.end()) owned.push_back(d);
    }
  }

  void Leave(size_t d) {
    traffic_.Remove(shared_[d]);
    for (const DocumentShare& share : shared_[d].shares) {
      auto& documents = documents_of_[static_cast<size_t>(share.server)];
      documents.erase(std::remove(documents.begin(), documents.end(), d), documents.end());
    }
  }

  double Low(int32_t server) const { return low_ * pool_.speed[static_cast<size_t>(server)]; }
  double High(int32_t server) const { return high_ * pool_.speed[static_cast<size_t>(server)]; }
  bool Serves(int32_t rank) const { return pool_.speed[static_cast<size_t>(rank)] > 0; }

  int32_t AnyRank() { return static_cast<int32_t>(draws_.Below(load_.size())); }
  int32_t AnyOf(const SharedDocument& shared) {
    return shared.shares[draws_.Below(shared.shares.size())].server;
  }

  bool IsInBounds() const {
    return std::all_of(trial_.loads().begin(), trial_.loads().end(), [&](const auto& server) {
      return server.second <= High(server.first) * (1 + kRounding) &&
             server.second >= Low(server.first) * (1 - kRounding);
    });
  }

  // Draws a change of a document because of which a rank is hot. Returns whether there is one.
  bool Draw() {
    const BusyRank& one = hot_[draws_.Below(hot_.size())];
    const BusyRank& another = hot_[draws_.Below(hot_.size())];
    const BusyRank& hot = one.bytes > another.bytes ? one : another;
    const auto rank = static_cast<size_t>(hot.rank);
    const std::vector<size_t>& documents = hot.sends ? owned_by_[rank] : documents_of_[rank];
    if (documents.empty()) return false;
    const size_t d = documents[draws_.Below(documents.size())];
    const SharedDocument& shared = shared_[d];
    const size_t count = shared.shares.size();
    if (count > 1 && draws_.OneIn(4)) {
      if (draws_.OneIn(2)) {
        trial_.PutOwnersFirst(d);
      } else {
        trial_.Reorder(d);
      }
      return true;
    }
    size_t i = hot.sends ? draws_.Below(count) : DrawShareOf(shared, hot.rank, count, &draws_);
    if (hot.sends) {
      // Each server of the document costs its owners keys: rather one that does little leaves.
      const size_t other = draws_.Below(count);
      if (shared.shares[other].seconds < shared.shares[i].seconds) i = other;
    }
    const DocumentShare from = shared.shares[i];
    int32_t to = AnyOf(shared);
    if (hot.sends && draws_.OneIn(4)) to = hot.rank;
    if (draws_.OneIn(4)) to = AnyRank();
    if (!Serves(to)) return false;
    if (to == from.server) {
      if (count > 1) trial_.Shift(d, i);
      return count > 1;
    }
    double seconds = from.seconds;
    switch (draws_.Below(4)) {
      case 0:  // as much as bounds allow
        seconds = std::min(
            {seconds, trial_.Load(from.server) - Low(from.server), High(to) - trial_.Load(to)});
        if (seconds <= 0) return false;
        break;
      case 1:  // a part
        for (size_t halvings = 1 + draws_.Below(4); halvings > 0; --halvings) seconds /= 2;
        break;
      default:
        break;
    }
    trial_.Transfer(d, i, to, seconds);
    for (int step = 0; step < kLongestChain; ++step) {
      const bool too_much = trial_.Load(to) > High(to);
      const bool too_little = trial_.Load(from.server) < Low(from.server);
      if (!too_much && !too_little) break;
      if (!PassOn(from.server, &to)) return false;
    }
    if (draws_.OneIn(3)) {
      const size_t changed = trial_.indices()[draws_.Below(trial_.size())];
      if (trial_.Document(changed).shares.size() > 1) trial_.PutOwnersFirst(changed);
    }
    return true;
  }

  // `*at` has too much or `first` too little: some of what *at has goes to `first`, or to another
  // server that *at is set to.
  bool PassOn(int32_t first, int32_t* at) {
    const int32_t from = *at;
    const double least = std::max(0.0, trial_.Load(from) - High(from));
    const double most = trial_.Load(from) - Low(from);
    const std::vector<size_t>& documents = documents_of_[static_cast<size_t>(from)];
    const std::vector<size_t>& kept = kept_of_[static_cast<size_t>(from)];
    if (documents.empty() && kept.empty()) return false;
    if (!kept.empty() && (documents.empty() || draws_.OneIn(3))) {
      *at = draws_.OneIn(4) ? AnyRank() : first;
      return *at != from && Serves(*at) && GiveKept(from, *at, least, most);
    }
    const size_t d = documents[draws_.Below(documents.size())];
    const SharedDocument& shared = trial_.Document(d);
    const size_t i = DrawShareOf(shared, from, shared.shares.size(), &draws_);
    if (i == shared.shares.size()) return false;
    *at = draws_.OneIn(2) ? first : draws_.OneIn(3) ? AnyRank() : AnyOf(shared);
    if (*at == from || !Serves(*at)) return false;
    double need = least, limit = std::min(most, shared.shares[i].seconds);
    if (*at == first) {
      need = std::max(need, Low(first) - trial_.Load(first));
      limit = std::min(limit, High(first) - trial_.Load(first));
    }
    if (need > limit) return false;
    const double seconds = draws_.OneIn(2) ? need : limit;
    if (seconds <= 0) return false;
    trial_.Transfer(d, i, *at, seconds);
    return true;
  }

  // Kept documents of [least, most] seconds, in the order of their work from any of them on.
  bool GiveKept(int32_t from, int32_t to, double least, double most) {
    const std::vector<size_t>& kept = kept_of_[static_cast<size_t>(from)];
    least = std::max(least, Low(to) - trial_.Load(to));
    most = std::min(most, High(to) - trial_.Load(to));
    double seconds = 0;
    for (size_t i = draws_.Below(kept.size()); i < kept.size() && seconds < least; ++i) {
      const double more = kept_[kept[i]].seconds;
      if (seconds + more > most) continue;
      const auto is_given = [&](const Gift& gift) { return gift.kept == kept[i]; };
      if (std::any_of(gifts_.begin(), gifts_.end(), is_given)) return false;
      gifts_.push_back({kept[i], to});
      seconds += more;
    }
    if (seconds < least || seconds <= 0) return false;
    trial_.Load(from) -= seconds;
    trial_.Load(to) += seconds;
    return true;
  }

  double Gain() {
    before_.clear();
    after_.clear();
    given_.resize(std::max(given_.size(), gifts_.size()));
    for (size_t i = 0; i < trial_.size(); ++i) {
      before_.push_back(&shared_[trial_.indices()[i]]);
      after_.push_back(&trial_.documents()[i]);
    }
    for (size_t i = 0; i < gifts_.size(); ++i) {
      const KeptDocument& kept = kept_[gifts_[i].kept];
      given_[i].document = kept.document;
      given_[i].shares.assign(1, {gifts_[i].to, kept.seconds});
      after_.push_back(&given_[i]);
    }
    return -traffic_.DifferenceOf(before_, after_);
  }

  void Apply() {
    for (size_t i = 0; i < trial_.size(); ++i) {
      const size_t d = trial_.indices()[i];
      Leave(d);
      shared_[d].shares = trial_.documents()[i].shares;
      Enter(d);
    }
    for (size_t i = 0; i < gifts_.size(); ++i) {
      KeptDocument& kept = kept_[gifts_[i].kept];
      auto& kept_by = kept_of_[static_cast<size_t>(kept.owner)];
      kept_by.erase(std::find(kept_by.begin(), kept_by.end(), gifts_[i].kept));
      kept.document = KeptDocument::kMoved;
      shared_.push_back(given_[i]);
      Enter(shared_.size() - 1);
    }
    for (const auto& [server, load] : trial_.loads()) load_[static_cast<size_t>(server)] = load;
    traffic_.FindBusy(kHot, &hot_);
  }

  const AttentionPool& pool_;
  std::vector<SharedDocument>& shared_;
  std::vector<KeptDocument>& kept_;
  std::vector<double>& load_;
  const double low_, high_;  // loads per speed that are let be
  AttentionTraffic traffic_;
  // Of each rank, indices into shared_ (those that it serves, that it owns a part of), into kept_.
  std::vector<std::vector<size_t>> documents_of_, owned_by_, kept_of_;
  std::vector<BusyRank> hot_;
  Draws draws_;
  ShareTrial trial_;
  std::vector<Gift> gifts_;  // of the trial
  std::vector<SharedDocument> given_;
  std::vector<const SharedDocument*> before_, after_;
};

}  // namespace

void ExchangeShares(const AttentionPool& pool, int64_t shard_tokens, double tolerance,
                    SharedWork* work) {
  Exchange(pool, shard_tokens, tolerance, work).Run();
}

}  // namespace evenkeel
