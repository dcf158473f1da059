#include "scheduler/attention_balance.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "scheduler/attention_traffic.h"

namespace evenkeel {
namespace {

// Times that shares are scaled to what their ranges really cost.
constexpr int kScalings = 16;
// Moves of shards after that, at most, a rank.
constexpr size_t kMovesPerRank = 16;
// Servers that a move's other end is chosen from.
constexpr size_t kPartners = 8;

// Queries [begin, end) of a document on a server.
struct Part {
  int32_t document = 0;
  int64_t begin = 0;
  int64_t end = 0;
  double seconds = 0;
};

class Balance {
 public:
  Balance(const AttentionPool& pool, const AttentionCost& cost,
          const DisaggregationOptions& options, SharedWork work)
      : pool_(pool),
        cost_(cost),
        shard_(options.shard_tokens),
        tolerance_(options.tolerance),
        shared_(std::move(work.documents)),
        kept_documents_(std::move(work.kept)),
        servers_(static_cast<size_t>(pool.num_ranks)) {
    for (const double speed : pool.speed) total_speed_ += speed;
  }

  std::vector<ServerTask> Run() {
    for (const KeptDocument& kept : kept_documents_) {
      const PooledDocument& document = Document(kept.document);
      Add(static_cast<size_t>(kept.owner), kept.document, document.q_begin, document.length);
    }
    ranges_.resize(shared_.size());
    kept_.clear();
    for (const Server& server : servers_) kept_.push_back(server.load);
    for (int i = 0; Cut() && i < kScalings; ++i) Scale();
    for (size_t d = 0; d < shared_.size(); ++d) PlaceShared(d);
    const size_t most = kMovesPerRank * servers_.size();
    for (size_t move = 0; move < most && MoveSome(); ++move) {
    }
    std::vector<ServerTask> tasks;
    for (size_t server = 0; server < servers_.size(); ++server) {
      for (const Part& part : servers_[server].parts) {
        tasks.push_back(
            {part.document, static_cast<int32_t>(server), part.begin, part.end - part.begin});
      }
    }
    return tasks;
  }

 private:
  struct Server {
    std::vector<Part> parts;
    double load = 0;
  };
  // A way to move queries [begin, end) of a server's part.
  struct Move {
    size_t from = 0, to = 0, part = 0;
    int64_t begin = 0, end = 0;
    double gain = 0;  // how much the loads' squared differences from the mean fall, a byte
  };

  double Seconds(int64_t begin, int64_t end) const { return cost_.Seconds(end - begin, end); }
  const PooledDocument& Document(int32_t index) const {
    return pool_.documents[static_cast<size_t>(index)];
  }
  double Mean() const { return total_load_ / total_speed_; }
  // Above the mean: positive.
  double Surplus(size_t s) const { return servers_[s].load - Mean() * pool_.speed[s]; }

  void Add(size_t server, int32_t document, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const double seconds = Seconds(begin, end);
    servers_[server].parts.push_back({document, begin, end, seconds});
    servers_[server].load += seconds;
    total_load_ += seconds;
  }

  void Remove(size_t server, size_t index) {
    Server& found = servers_[server];
    found.load -= found.parts[index].seconds;
    total_load_ -= found.parts[index].seconds;
    found.parts[index] = found.parts.back();
    found.parts.pop_back();
    if (found.parts.empty()) found.load = 0;
  }

  // Calls `visit(share, begin, end)` for each range of a shared document.
  template <typename Visit>
  void ForEachRange(size_t d, const Visit& visit) {
    int64_t begin = Document(shared_[d].document).q_begin;
    for (size_t i = 0; i < shared_[d].shares.size(); ++i) {
      visit(shared_[d].shares[i], begin, ranges_[d][i]);
      begin = ranges_[d][i];
    }
  }

  void PlaceShared(size_t d) {
    ForEachRange(d, [&](const DocumentShare& share, int64_t begin, int64_t end) {
      Add(static_cast<size_t>(share.server), shared_[d].document, begin, end);
    });
  }

  // Cuts all shares. Returns whether some server is out of bounds.
  bool Cut() {
    loads_ = kept_;
    for (size_t d = 0; d < shared_.size(); ++d) {
      CutShares(Document(shared_[d].document), shard_, shared_[d].shares, &ranges_[d]);
      ForEachRange(d, [&](const DocumentShare& share, int64_t begin, int64_t end) {
        loads_[static_cast<size_t>(share.server)] += Seconds(begin, end);
      });
    }
    double total = 0;
    for (const double load : loads_) total += load;
    mean_ = total / total_speed_;
    for (size_t s = 0; s < loads_.size(); ++s) {
      if (loads_[s] > High(s) || loads_[s] < Low(s)) return true;
    }
    return false;
  }
  double High(size_t s) const { return mean_ * pool_.speed[s] * (1 + tolerance_); }
  double Low(size_t s) const { return mean_ * pool_.speed[s] / (1 + tolerance_); }

  // Makes the shares of servers out of bounds larger or smaller in proportion.
  void Scale() {
    factors_.assign(loads_.size(), 1);
    for (size_t s = 0; s < loads_.size(); ++s) {
      const double movable = loads_[s] - kept_[s];
      const double middle = mean_ * pool_.speed[s];
      // Half way back inside the bounds.
      const double wanted = std::clamp(loads_[s], (Low(s) + middle) / 2, (High(s) + middle) / 2);
      if (movable > 0) factors_[s] = std::clamp((wanted - kept_[s]) / movable, 0.25, 4.0);
    }
    for (SharedDocument& shared : shared_) {
      for (DocumentShare& share : shared.shares) {
        share.seconds *= factors_[static_cast<size_t>(share.server)];
      }
    }
  }

  // Bytes that `server` receives more if it also computes [begin, end) of the document.
  int64_t BytesFor(size_t server, int32_t d, int64_t begin, int64_t end) const {
    int64_t keys = 0;
    for (const Part& part : servers_[server].parts) {
      if (part.document == d) keys = std::max(keys, part.end);
    }
    const PooledDocument& document = Document(d);
    int64_t bytes = 0;
    for (int32_t i = 0; i < document.num_pieces; ++i) {
      const DocumentPiece& piece = pool_.pieces[static_cast<size_t>(document.first_piece + i)];
      if (piece.begin >= end) break;
      if (piece.owner == static_cast<int>(server)) continue;
      const int64_t to = std::min(end, piece.begin + piece.length);
      bytes += pool_.bytes.q * std::max<int64_t>(0, to - std::max(begin, piece.begin));
      bytes += pool_.bytes.kv * std::max<int64_t>(0, to - std::max(keys, piece.begin));
    }
    return bytes;
  }

  // The first cut of [low, high] from which on there are at most `seconds` before `high`.
  int64_t BeginFor(int64_t low, int64_t high, double seconds) const {
    int64_t few = (low + shard_ - 1) / shard_, many = high / shard_;  // shards before the cut
    while (few < many) {
      const int64_t middle = (few + many) / 2;
      if (Seconds(middle * shard_, high) > seconds) {
        few = middle + 1;
      } else {
        many = middle;
      }
    }
    return std::min(high, few * shard_);
  }
  // The last cut of [low, high] up to which there are at most `seconds` after `low`.
  int64_t EndFor(int64_t low, int64_t high, double seconds) const {
    int64_t few = (low + shard_ - 1) / shard_, many = high / shard_;
    while (few < many) {
      const int64_t middle = (few + many + 1) / 2;
      if (Seconds(low, middle * shard_) > seconds) {
        many = middle - 1;
      } else {
        few = middle;
      }
    }
    return std::max(low, few * shard_);
  }

  void Consider(size_t from, size_t to, size_t index, int64_t begin, int64_t end,
                Move* best) const {
    const Part& part = servers_[from].parts[index];
    if (begin < part.begin || end > part.end || begin >= end) return;
    const double taken = part.seconds - Seconds(part.begin, begin) - Seconds(end, part.end);
    const double given = Seconds(begin, end);
    const double gain = taken * (2 * Surplus(from) - taken) / pool_.speed[from] -
                        given * (2 * Surplus(to) + given) / pool_.speed[to];
    if (gain <= kLeastGain * Mean() * Mean()) return;
    const double bytes = static_cast<double>(BytesFor(to, part.document, begin, end));
    if (gain / (bytes + 1) <= best->gain) return;
    *best = {from, to, index, begin, end, gain / (bytes + 1)};
  }

  // The ends of the server's parts: a shard of them, or as much as evens out the two servers.
  void ConsiderPair(size_t from, size_t to, Move* best) const {
    const double most = std::min(Surplus(from), -Surplus(to));
    if (from == to || most <= 0) return;
    for (size_t i = 0; i < servers_[from].parts.size(); ++i) {
      const Part& part = servers_[from].parts[i];
      Consider(from, to, i, part.begin, std::min(part.end, (part.begin / shard_ + 1) * shard_),
               best);
      Consider(from, to, i, std::max(part.begin, (part.end - 1) / shard_ * shard_), part.end, best);
      if (part.seconds <= most) {
        Consider(from, to, i, part.begin, part.end, best);
      } else {
        Consider(from, to, i, part.begin, EndFor(part.begin, part.end, most), best);
        Consider(from, to, i, BeginFor(part.begin, part.end, most), part.end, best);
      }
    }
  }

  // The few servers whose loads per speed are most above (1) or below (-1) the mean.
  std::vector<size_t> MostDifferent(int sign) const {
    std::vector<std::pair<double, size_t>> differences;
    for (size_t s = 0; s < servers_.size(); ++s) {
      if (pool_.speed[s] > 0) differences.push_back({-sign * Surplus(s) / pool_.speed[s], s});
    }
    const size_t few = std::min(kPartners, differences.size());
    std::partial_sort(differences.begin(), differences.begin() + static_cast<std::ptrdiff_t>(few),
                      differences.end());
    std::vector<size_t> servers;
    for (size_t i = 0; i < few; ++i) servers.push_back(differences[i].second);
    return servers;
  }

  // From the server most above its bound or to the one most below. Returns whether there was a way.
  bool MoveSome() {
    size_t heaviest = 0, lightest = 0;
    double most = 0, least = 0;  // ratios of the load to the bound, less one
    mean_ = Mean();
    for (size_t s = 0; s < servers_.size(); ++s) {
      if (pool_.speed[s] <= 0 || mean_ <= 0) continue;
      const double load = servers_[s].load;
      if (load / High(s) - 1 > most) most = load / High(s) - 1, heaviest = s;
      if (load / Low(s) - 1 < least) least = load / Low(s) - 1, lightest = s;
    }
    Move best;
    if (most > 0) {
      for (const size_t s : MostDifferent(-1)) ConsiderPair(heaviest, s, &best);
    }
    if (best.gain <= 0 && least < 0) {
      for (const size_t s : MostDifferent(1)) ConsiderPair(s, lightest, &best);
    }
    if (best.gain <= 0) return false;
    const Part part = servers_[best.from].parts[best.part];
    Remove(best.from, best.part);
    Add(best.from, part.document, part.begin, best.begin);
    Add(best.from, part.document, best.end, part.end);
    Add(best.to, part.document, best.begin, best.end);
    return true;
  }

  // Of the squared mean.
  static constexpr double kLeastGain = 1e-9;

  const AttentionPool& pool_;
  const AttentionCost& cost_;
  const int64_t shard_;
  const double tolerance_;
  std::vector<SharedDocument> shared_;
  std::vector<KeptDocument> kept_documents_;
  std::vector<Server> servers_;
  double total_load_ = 0, total_speed_ = 0;
  std::vector<std::vector<int64_t>> ranges_;  // ends of the shares of each shared document
  std::vector<double> kept_;                  // seconds of each server that are not shared
  std::vector<double> loads_, factors_;
  double mean_ = 0;
};

}  // namespace

std::vector<ServerTask> CutToTasks(const AttentionPool& pool, const AttentionCost& cost,
                                   const DisaggregationOptions& options, SharedWork work) {
  return Balance(pool, cost, options, std::move(work)).Run();
}

}  // namespace evenkeel
