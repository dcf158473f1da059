// MessageRounds: an edge colouring of the bipartite graph of senders and receivers. By Koenig's
// theorem as many colours do as the busiest rank has links on one side.
#include <algorithm>
#include <array>
#include <numeric>

#include "scheduler/disaggregation_plan.h"

namespace evenkeel {
namespace {

constexpr int32_t kNone = -1;

class EdgeColouring {
 public:
  EdgeColouring(int num_ranks, absl::Span<const AttentionLink> links) : links_(links) {
    std::array<std::vector<int32_t>, 2> degrees;
    for (auto& side : degrees) side.assign(static_cast<size_t>(num_ranks), 0);
    for (const AttentionLink& link : links) {
      num_colours_ = std::max({num_colours_, ++degrees[0][static_cast<size_t>(link.from)],
                               ++degrees[1][static_cast<size_t>(link.to)]});
    }
    for (auto& side : links_of_) {
      side.assign(static_cast<size_t>(num_ranks) * static_cast<size_t>(num_colours_), kNone);
    }
    colours_.assign(links.size(), kNone);
  }

  int32_t num_colours() const { return num_colours_; }
  int32_t colour(int32_t link) const { return colours_[static_cast<size_t>(link)]; }

  // Gives `link` the first colour that both its ends have free. If there is none, a colour free at
  // the sender is freed at the receiver: on the path of links that alternate between the two
  // colours they are exchanged. Of bipartite graphs the path cannot come back to the sender.
  void Add(int32_t link) {
    const int32_t free_at_from = FirstFree(0, End(link, 0)),
                  free_at_to = FirstFree(1, End(link, 1));
    int32_t colour = free_at_from;
    while (colour < num_colours_ &&
           (At(0, End(link, 0), colour) != kNone || At(1, End(link, 1), colour) != kNone)) {
      ++colour;
    }
    if (colour == num_colours_) {
      Exchange(1, End(link, 1), free_at_from, free_at_to);
      colour = free_at_from;
    }
    Set(link, colour);
  }

 private:
  int32_t End(int32_t link, int side) const {
    const AttentionLink& found = links_[static_cast<size_t>(link)];
    return side == 0 ? found.from : found.to;
  }
  int32_t& At(int side, int32_t rank, int32_t colour) {
    return links_of_[static_cast<size_t>(side)]
                    [static_cast<size_t>(rank) * static_cast<size_t>(num_colours_) +
                     static_cast<size_t>(colour)];
  }
  int32_t FirstFree(int side, int32_t rank) {
    int32_t colour = 0;
    while (At(side, rank, colour) != kNone) ++colour;
    return colour;
  }
  void Set(int32_t link, int32_t colour) {
    colours_[static_cast<size_t>(link)] = colour;
    for (const int side : {0, 1}) At(side, End(link, side), colour) = link;
  }

  // Of the path that leaves `rank` by a link of colour `first`.
  void Exchange(int side, int32_t rank, int32_t first, int32_t second) {
    path_.clear();
    for (int32_t colour = first;;) {
      const int32_t link = At(side, rank, colour);
      if (link == kNone) break;
      path_.push_back(link);
      side = 1 - side;
      rank = End(link, side);
      colour = colour == first ? second : first;
    }
    for (const int32_t link : path_) {
      for (const int end : {0, 1}) At(end, End(link, end), colour(link)) = kNone;
    }
    for (const int32_t link : path_) Set(link, colour(link) == first ? second : first);
  }

  absl::Span<const AttentionLink> links_;
  int32_t num_colours_ = 0;
  std::array<std::vector<int32_t>, 2> links_of_;  // [side][rank * colours + colour]
  std::vector<int32_t> colours_;                  // of each link
  std::vector<int32_t> path_;
};

}  // namespace

std::vector<std::vector<int32_t>> MessageRounds(int num_ranks,
                                                absl::Span<const AttentionLink> links) {
  // The longest first, so that the first rounds are of long messages and the last of short ones.
  std::vector<int32_t> order(links.size());
  std::iota(order.begin(), order.end(), 0);
  const auto tokens = [&](int32_t link) {
    const AttentionLink& found = links[static_cast<size_t>(link)];
    return found.q_tokens + found.kv_tokens;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return tokens(a) > tokens(b); });
  EdgeColouring colouring(num_ranks, links);
  for (const int32_t link : order) colouring.Add(link);
  std::vector<std::vector<int32_t>> rounds(static_cast<size_t>(colouring.num_colours()));
  for (int32_t link = 0; link < static_cast<int32_t>(links.size()); ++link) {
    rounds[static_cast<size_t>(colouring.colour(link))].push_back(link);
  }
  return rounds;
}

}  // namespace evenkeel
