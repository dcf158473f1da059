#include "scheduler/short_documents.h"

#include <algorithm>
#include <set>
#include <utility>

namespace evenkeel {

void DealShortDocuments(const AttentionPool& pool, double most_seconds, std::vector<double>* excess,
                        std::vector<double>* room, std::vector<SharedDocument>* shared) {
  const auto document_of = [&](const SharedDocument* given) -> const PooledDocument& {
    return pool.documents[static_cast<size_t>(given->document)];
  };
  const auto seconds_of = [&](const SharedDocument* given) -> double& {
    return (*excess)[static_cast<size_t>(given->document)];
  };
  std::vector<SharedDocument*> longest_first;
  for (SharedDocument& candidate : *shared) {
    const auto piece = static_cast<size_t>(document_of(&candidate).first_piece);
    const bool is_served_here = pool.speed[static_cast<size_t>(pool.pieces[piece].owner)] > 0;
    const double seconds = seconds_of(&candidate);
    if (is_served_here || !candidate.shares.empty()) continue;
    if (seconds > 0 && seconds < most_seconds) longest_first.push_back(&candidate);
  }
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](const SharedDocument* a, const SharedDocument* b) {
                     return seconds_of(a) > seconds_of(b);
                   });
  std::set<std::pair<int64_t, int32_t>> servers;  // by queries so far
  for (size_t s = 0; s < room->size(); ++s) {
    if (pool.speed[s] > 0) servers.insert({0, static_cast<int32_t>(s)});
  }
  for (SharedDocument* given : longest_first) {
    double& seconds = seconds_of(given);
    const auto found = std::find_if(servers.begin(), servers.end(), [&](const auto& server) {
      return (*room)[static_cast<size_t>(server.second)] >= seconds;
    });
    if (found == servers.end()) continue;
    const auto [queries, server] = *found;
    servers.erase(found);
    servers.insert({queries + document_of(given).length - document_of(given).q_begin, server});
    given->shares.push_back({server, seconds});
    (*room)[static_cast<size_t>(server)] -= seconds;
    seconds = 0;
  }
}

}  // namespace evenkeel
