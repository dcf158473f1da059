#include "scheduler/attention_balance.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace evenkeel {
namespace {

// Queries [begin, end) of a document on a server.
struct Part {
  int32_t document = 0;
  int64_t begin = 0;
  int64_t end = 0;
  double seconds = 0;
};

struct Move {
  int32_t from = -1;
  size_t part = 0;
  int64_t begin = 0, end = 0;
  double gain = -1;  // seconds a byte
};

class Balancer {
 public:
  Balancer(const AttentionPool& pool, const AttentionCost& cost,
           const DisaggregationOptions& options)
      : pool_(pool), cost_(cost), options_(options), servers_(static_cast<size_t>(pool.num_ranks)) {
    for (const double speed : pool.speed) total_speed_ += speed;
  }

  std::vector<ServerTask> Run() {
    Seed();
    // A measured cost is not additive: parts may go in circles, shards do not.
    const size_t large_moves = 64 + 4 * servers_.size(), moves = 2 * large_moves;
    for (size_t move = 0; move < moves && Improve(move < large_moves); ++move) {
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

  double Seconds(int64_t begin, int64_t end) const { return cost_.Seconds(end - begin, end); }
  double Target(size_t server) const { return total_load_ * pool_.speed[server] / total_speed_; }
  const PooledDocument& Document(int32_t index) const {
    return pool_.documents[static_cast<size_t>(index)];
  }

  // Every owner computes its own queries, cut where shards may be cut.
  void Seed() {
    for (size_t d = 0; d < pool_.documents.size(); ++d) {
      const PooledDocument& document = pool_.documents[d];
      int64_t begin = document.q_begin;
      for (int32_t i = 0; i < document.num_pieces; ++i) {
        const DocumentPiece& piece = pool_.pieces[static_cast<size_t>(document.first_piece + i)];
        int64_t end = piece.begin + piece.length;
        if (end < document.length) end = RoundToCut(end);
        end = std::min(end, document.length);
        if (end <= begin) continue;
        Add(static_cast<size_t>(piece.owner), {static_cast<int32_t>(d), begin, end, 0});
        begin = end;
      }
    }
  }

  int64_t RoundToCut(int64_t position) const {
    return (position + options_.shard_tokens / 2) / options_.shard_tokens * options_.shard_tokens;
  }

  void Add(size_t server, Part part) {
    part.seconds = Seconds(part.begin, part.end);
    servers_[server].parts.push_back(part);
    servers_[server].load += part.seconds;
    total_load_ += part.seconds;
  }

  void Remove(size_t server, size_t index) {
    Server& found = servers_[server];
    found.load -= found.parts[index].seconds;
    total_load_ -= found.parts[index].seconds;
    found.parts[index] = found.parts.back();
    found.parts.pop_back();
    if (found.parts.empty()) found.load = 0;
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

  // The cut in [low, high] for which [cut, end) is nearest to `seconds`.
  int64_t BeginFor(int64_t low, int64_t end, double seconds) const {
    const int64_t step = options_.shard_tokens;
    int64_t few = (low + step - 1) / step, many = end / step;  // in shards, [few, many]
    while (few < many) {
      const int64_t middle = (few + many) / 2;
      if (Seconds(middle * step, end) > seconds) {
        few = middle + 1;
      } else {
        many = middle;
      }
    }
    return std::min(end, few * step);
  }

  int64_t EndFor(int64_t begin, int64_t high, double seconds) const {
    const int64_t step = options_.shard_tokens;
    int64_t few = (begin + step - 1) / step, many = high / step;
    while (few < many) {
      const int64_t middle = (few + many + 1) / 2;
      if (Seconds(begin, middle * step) > seconds) {
        many = middle - 1;
      } else {
        few = middle;
      }
    }
    return std::max(begin, few * step);
  }

  void Consider(size_t to, size_t from, size_t index, int64_t begin, int64_t end,
                Move* best) const {
    const Part& part = servers_[from].parts[index];
    if (begin < part.begin || end > part.end || begin >= end) return;
    const double seconds = Seconds(begin, end);
    const auto bytes = static_cast<double>(BytesFor(to, part.document, begin, end));
    const double gain = seconds / std::max(bytes, 1.0);
    if (gain > best->gain) *best = {static_cast<int32_t>(from), index, begin, end, gain};
  }

  // The best way to move at most `most` seconds of a part.
  void ConsiderPart(size_t to, size_t from, size_t index, double most, Move* best) const {
    const Part& part = servers_[from].parts[index];
    if (part.seconds <= most) {
      Consider(to, from, index, part.begin, part.end, best);
      return;
    }
    const int64_t early = EndFor(part.begin, part.end, most);
    Consider(to, from, index, part.begin, early, best);
    const int64_t late = BeginFor(part.begin, part.end, most);
    Consider(to, from, index, late, part.end, best);
    // n queries before `end` see about n (end - n / 2) pairs; bytes q n + kv end are least at
    const double pairs = CausalPairs(part.end - part.begin, part.end) * most / part.seconds;
    const double queries =
        std::sqrt(static_cast<double>(pool_.bytes.kv) * pairs /
                  (static_cast<double>(pool_.bytes.q) + static_cast<double>(pool_.bytes.kv) / 2));
    const auto end = static_cast<int64_t>(pairs / std::max(1.0, queries) + queries / 2) /
                     options_.shard_tokens * options_.shard_tokens;
    if (end <= early || end >= part.end) return;
    const int64_t begin = BeginFor(part.begin, end, most);
    Consider(to, from, index, begin, end, best);
  }

  // Of the shards at the ends of the heaviest server's parts the one that evens out the two servers
  // most; what a server of no speed has, goes in any case.
  Move SmallestMove(size_t from, size_t to) const {
    const bool must = pool_.speed[from] <= 0;
    const double surplus = servers_[from].load - Target(from);
    const double need = Target(to) - servers_[to].load;
    Move best;
    double best_gain = 0;
    const auto consider = [&](size_t index, int64_t begin, int64_t end) {
      const double seconds = Seconds(begin, end);
      // How much the sum of squared differences from the target, over speed, falls.
      const double up = seconds * (2 * need - seconds) / pool_.speed[to];
      const double down = must ? 0 : seconds * (2 * surplus - seconds) / pool_.speed[from];
      if (best.from >= 0 ? up + down <= best_gain : !must && up + down <= 0) return;
      best_gain = up + down;
      best = {static_cast<int32_t>(from), index, begin, end, 0};
    };
    const int64_t step = options_.shard_tokens;
    for (size_t i = 0; i < servers_[from].parts.size(); ++i) {
      const Part& part = servers_[from].parts[i];
      consider(i, part.begin, std::min(part.end, (part.begin / step + 1) * step));
      consider(i, std::max(part.begin, (part.end - 1) / step * step), part.end);
      if (must) consider(i, part.begin, part.end);
    }
    return best;
  }

  bool Improve(bool large) {
    const double mean = total_load_ / total_speed_;
    size_t lightest = servers_.size(), heaviest = servers_.size();
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for (size_t s = 0; s < servers_.size(); ++s) {
      const double speed = pool_.speed[s];
      if (speed > 0 && servers_[s].load / speed < least) {
        least = servers_[s].load / speed;
        lightest = s;
      }
      const double ratio = speed > 0              ? servers_[s].load / speed
                           : servers_[s].load > 0 ? std::numeric_limits<double>::infinity()
                                                  : 0;
      if (ratio > most) {
        most = ratio;
        heaviest = s;
      }
    }
    if (heaviest == servers_.size()) return false;
    const double bound = 1 + options_.tolerance;
    const bool too_light = least * bound<mean, too_heavy = most> bound * mean;
    if (!too_light && !too_heavy) return false;
    const double need = Target(lightest) - servers_[lightest].load;
    Move best;
    const auto consider = [&](size_t from) {
      const double surplus = servers_[from].load - Target(from);
      if (surplus <= 0) return;
      for (size_t i = 0; i < servers_[from].parts.size(); ++i) {
        ConsiderPart(lightest, from, i, std::min(surplus, need), &best);
      }
    };
    if (!large) {
    } else if (too_light) {
      for (size_t from = 0; from < servers_.size(); ++from) consider(from);
    } else {
      consider(heaviest);
    }
    if (best.from < 0) best = SmallestMove(heaviest, lightest);
    if (best.from < 0) return false;
    const auto from = static_cast<size_t>(best.from);
    const Part part = servers_[from].parts[best.part];
    Remove(from, best.part);
    if (part.begin < best.begin) Add(from, {part.document, part.begin, best.begin, 0});
    if (best.end < part.end) Add(from, {part.document, best.end, part.end, 0});
    Add(lightest, {part.document, best.begin, best.end, 0});
    return true;
  }

  const AttentionPool& pool_;
  const AttentionCost& cost_;
  const DisaggregationOptions& options_;
  std::vector<Server> servers_;
  double total_load_ = 0;
  double total_speed_ = 0;
};

}  // namespace

std::vector<ServerTask> BalanceTasks(const AttentionPool& pool, const AttentionCost& cost,
                                     const DisaggregationOptions& options) {
  return Balancer(pool, cost, options).Run();
}

}  // namespace evenkeel
