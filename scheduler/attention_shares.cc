#include "scheduler/attention_shares.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "scheduler/short_documents.h"

namespace evenkeel {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Of the mean load: a document with less stays out of the search.
constexpr double kLeastShare = 0.02;
// Less than this of what is divided is taken for none.
constexpr double kRounding = 1e-9;

// Of a document, the queries that one rank holds together.
struct Portion {
  int32_t document = 0;
  int32_t owner = 0;
  double seconds = 0;
  double seconds_per_query = 0;
};

// Loads per speed between which servers are left alone.
struct LoadLevels {
  double low = 0;
  double high = 0;
};

class Sharing {
 public:
  Sharing(const AttentionPool& pool, const AttentionCost& cost, double tolerance)
      : pool_(pool), tolerance_(tolerance), load_(static_cast<size_t>(pool.num_ranks), 0) {
    for (size_t d = 0; d < pool.documents.size(); ++d) AddPortions(static_cast<int32_t>(d), cost);
    for (const double load : load_) total_load_ += load;
    for (const double speed : pool.speed) total_speed_ += speed;
  }

  SharedWork Run() {
    const LoadLevels levels = FindLevels();
    kept_.assign(portions_.size(), 0);
    room_.assign(load_.size(), 0);
    excess_.assign(pool_.documents.size(), 0);
    Keep(levels);
    SharedWork work;
    work.mean = total_load_ / total_speed_;
    Divide(&work);
    HandOut(&work.documents);
    work.load = std::move(load_);
    return work;
  }

 private:
  const PooledDocument& Document(int32_t d) const {
    return pool_.documents[static_cast<size_t>(d)];
  }
  const DocumentPiece& Piece(const PooledDocument& document, int32_t i) const {
    return pool_.pieces[static_cast<size_t>(document.first_piece + i)];
  }

  void AddPortions(int32_t d, const AttentionCost& cost) {
    const PooledDocument& document = Document(d);
    const size_t first = portions_.size();
    for (int32_t i = 0; i < document.num_pieces; ++i) {
      const DocumentPiece& piece = Piece(document, i);
      const int64_t begin = std::max(piece.begin, document.q_begin);
      const int64_t end = piece.begin + piece.length;
      if (begin >= end) continue;
      const double seconds = cost.Seconds(end - begin, end);
      load_[static_cast<size_t>(piece.owner)] += seconds;
      const double queries = static_cast<double>(end - begin);
      const auto same =
          std::find_if(portions_.begin() + static_cast<std::ptrdiff_t>(first), portions_.end(),
                       [&](const Portion& p) { return p.owner == piece.owner; });
      if (same != portions_.end()) {
        same->seconds += seconds;
        same->seconds_per_query = std::max(same->seconds_per_query, seconds / queries);
      } else {
        portions_.push_back({d, piece.owner, seconds, seconds / queries});
      }
    }
  }

  double LoadPerSpeed(size_t s) const {
    if (pool_.speed[s] > 0) return load_[s] / pool_.speed[s];
    return load_[s] > 0 ? kInfinity : 0;
  }

  // The level `low` up to which servers have to be filled to take `seconds`.
  double LowFor(double seconds) const {
    std::vector<std::pair<double, double>> servers;  // (load per speed, speed)
    for (size_t s = 0; s < load_.size(); ++s) {
      if (pool_.speed[s] > 0) servers.push_back({LoadPerSpeed(s), pool_.speed[s]});
    }
    std::sort(servers.begin(), servers.end());
    double load = 0, speed = 0;
    for (size_t i = 0; i < servers.size(); ++i) {
      load += servers[i].first * servers[i].second;
      speed += servers[i].second;
      const double level = (load + seconds) / speed;
      if (i + 1 == servers.size() || level <= servers[i + 1].first) return level;
    }
    return 0;
  }

  // The level `high` above which there are `seconds`.
  double HighFor(double seconds) const {
    std::vector<std::pair<double, double>> servers;
    double load = 0, speed = 0;
    for (size_t s = 0; s < load_.size(); ++s) {
      if (pool_.speed[s] > 0) {
        servers.push_back({LoadPerSpeed(s), pool_.speed[s]});
      } else {
        load += load_[s];
      }
    }
    std::sort(servers.begin(), servers.end());
    for (size_t i = servers.size(); i-- > 0;) {
      load += servers[i].first * servers[i].second;
      speed += servers[i].second;
      const double level = (load - seconds) / speed;
      if (i == 0 || level >= servers[i - 1].first) return level;
    }
    return 0;
  }

  double Above(double level) const {
    double seconds = 0;
    for (size_t s = 0; s < load_.size(); ++s) {
      seconds += std::max(0.0, load_[s] - level * pool_.speed[s]);
    }
    return seconds;
  }
  double Below(double level) const {
    double seconds = 0;
    for (size_t s = 0; s < load_.size(); ++s) {
      seconds += std::max(0.0, level * pool_.speed[s] - load_[s]);
    }
    return seconds;
  }

  // As little moves as the tolerance allows.
  LoadLevels FindLevels() const {
    const double mean = total_load_ / total_speed_, slack = tolerance_;
    LoadLevels levels;
    levels.high = mean * (1 + slack);
    levels.low = LowFor(Above(levels.high));
    if (levels.low * (1 + slack) < mean) {
      levels.low = mean / (1 + slack);
      levels.high = HighFor(Below(levels.low));
    }
    return levels;
  }

  // Owners with too much keep what has the least work a query: it is what costs most to send.
  void Keep(const LoadLevels& levels) {
    std::vector<std::vector<size_t>> over(load_.size());
    for (size_t i = 0; i < portions_.size(); ++i) {
      const auto owner = static_cast<size_t>(portions_[i].owner);
      kept_[i] = portions_[i].seconds;
      if (LoadPerSpeed(owner) > levels.high) over[owner].push_back(i);
    }
    for (size_t owner = 0; owner < over.size(); ++owner) {
      room_[owner] = std::max(0.0, levels.low * pool_.speed[owner] - load_[owner]);
      std::vector<size_t>& mine = over[owner];
      std::sort(mine.begin(), mine.end(), [&](size_t a, size_t b) {
        if (portions_[a].seconds_per_query != portions_[b].seconds_per_query) {
          return portions_[a].seconds_per_query < portions_[b].seconds_per_query;
        }
        return a < b;
      });
      double left = levels.high * pool_.speed[owner];
      for (const size_t i : mine) {
        kept_[i] = std::min(portions_[i].seconds, left);
        left -= kept_[i];
        load_[owner] -= portions_[i].seconds - kept_[i];
        excess_[static_cast<size_t>(portions_[i].document)] += portions_[i].seconds - kept_[i];
      }
    }
  }

  // What owners keep of their documents.
  void Divide(SharedWork* work) const {
    const double least = kLeastShare * work->mean;
    for (size_t first = 0, end = 0; first < portions_.size(); first = end) {
      const Portion& portion = portions_[first];
      while (end < portions_.size() && portions_[end].document == portion.document) ++end;
      if (Document(portion.document).num_pieces == 1 && portion.seconds < least &&
          excess_[static_cast<size_t>(portion.document)] <= 0) {
        work->kept.push_back({portion.document, portion.owner, portion.seconds});
        continue;
      }
      SharedDocument shared;
      shared.document = portion.document;
      for (size_t i = first; i < end; ++i) {
        if (kept_[i] > 0) shared.shares.push_back({portions_[i].owner, kept_[i]});
      }
      work->documents.push_back(std::move(shared));
    }
  }

  void HandOut(std::vector<SharedDocument>* shared) {
    using Room = std::pair<double, int32_t>;
    std::set<Room> rooms;
    std::vector<double> room = room_;
    DealShortDocuments(pool_, kLeastShare * total_load_ / total_speed_, &excess_, &room, shared);
    for (size_t s = 0; s < room.size(); ++s) load_[s] += room_[s] - room[s];
    for (size_t s = 0; s < room.size(); ++s) {
      if (room[s] > 0) rooms.insert({room[s], static_cast<int32_t>(s)});
    }
    std::vector<size_t> order;
    for (size_t i = 0; i < shared->size(); ++i) {
      if (ExcessOf((*shared)[i]) > 0) order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      const double left = ExcessOf((*shared)[a]), right = ExcessOf((*shared)[b]);
      return left != right ? left > right : a < b;
    });
    for (const size_t i : order) {
      SharedDocument& document = (*shared)[i];
      double excess = ExcessOf(document);
      const auto give = [&](int32_t server, double seconds) {
        auto& free = room[static_cast<size_t>(server)];
        rooms.erase({free, server});
        free -= seconds;
        excess -= seconds;
        load_[static_cast<size_t>(server)] += seconds;
        if (free > kRounding * seconds) rooms.insert({free, server});
        for (DocumentShare& share : document.shares) {
          if (share.server != server) continue;
          share.seconds += seconds;
          return;
        }
        document.shares.push_back({server, seconds});
      };
      // Those who hold a part of it have some of its keys.
      for (int32_t p = 0; p < Document(document.document).num_pieces; ++p) {
        const int32_t owner = Piece(Document(document.document), p).owner;
        const double free = room[static_cast<size_t>(owner)];
        if (free > 0 && excess > 0 && rooms.count({free, owner}) > 0) {
          give(owner, std::min(free, excess));
        }
      }
      const double least = kRounding * excess;
      while (excess > least && !rooms.empty()) {
        auto found = rooms.lower_bound({excess, -1});
        if (found == rooms.end()) --found;
        const Room chosen = *found;
        give(chosen.second, std::min(chosen.first, excess));
      }
      // Rounding has used up all room.
      if (document.shares.empty()) give(Emptiest(room), excess);
    }
  }

  int32_t Emptiest(const std::vector<double>& room) const {
    size_t best = 0;
    for (size_t s = 1; s < room.size(); ++s) {
      if (pool_.speed[s] <= 0) continue;
      if (pool_.speed[best] <= 0 || room[s] > room[best]) best = s;
    }
    return static_cast<int32_t>(best);
  }

  double ExcessOf(const SharedDocument& shared) const {
    return excess_[static_cast<size_t>(shared.document)];
  }

  const AttentionPool& pool_;
  const double tolerance_;
  std::vector<Portion> portions_;  // by document
  std::vector<double> load_;       // of each rank in place
  double total_load_ = 0, total_speed_ = 0;
  std::vector<double> kept_;    // of each portion, by its owner
  std::vector<double> room_;    // of each server
  std::vector<double> excess_;  // of each document
};

}  // namespace

SharedWork ShareDocuments(const AttentionPool& pool, const AttentionCost& cost, double tolerance) {
  return Sharing(pool, cost, tolerance).Run();
}

void DropMoved(std::vector<KeptDocument>* kept) {
  const auto is_moved = [](const KeptDocument& each) {
    return each.document == KeptDocument::kMoved;
  };
  kept->erase(std::remove_if(kept->begin(), kept->end(), is_moved), kept->end());
}

}  // namespace evenkeel
