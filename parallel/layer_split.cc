#include "parallel/layer_split.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace evenkeel {
namespace {

std::vector<int64_t> EvenSplit(int64_t num_layers, int64_t num_stages) {
  const int64_t base = num_layers / num_stages, longer = num_layers % num_stages;
  // The longer ones side by side in the middle; where they cannot be, nearer to the first stage.
  const int64_t begin = (num_stages - longer) / 2;
  std::vector<int64_t> layers(static_cast<size_t>(num_stages), base);
  for (int64_t s = begin; s < begin + longer; ++s) ++layers[static_cast<size_t>(s)];
  return layers;
}

// Returns `requested`, with as many entries as stages, changed until it adds up: layers are taken
// from the stages with the most and given to those with the fewest.
std::vector<int64_t> NearestSplit(int64_t num_layers, absl::Span<const int64_t> requested) {
  const int64_t most = num_layers - static_cast<int64_t>(requested.size()) + 1;
  std::vector<int64_t> layers;
  for (const int64_t count : requested) layers.push_back(std::clamp<int64_t>(count, 1, most));
  int64_t sum = std::accumulate(layers.begin(), layers.end(), int64_t{0});
  for (; sum > num_layers; --sum) --*std::max_element(layers.rbegin(), layers.rend());
  for (; sum < num_layers; ++sum) ++*std::min_element(layers.begin(), layers.end());
  return layers;
}

std::string Text(absl::Span<const int64_t> layers) {
  return absl::StrCat("[", absl::StrJoin(layers, ", "), "]");
}

}  // namespace

absl::StatusOr<std::vector<int64_t>> SplitLayers(int64_t num_layers, int num_stages,
                                                 absl::Span<const int64_t> requested) {
  const auto error = [&](const std::vector<std::string>& wrong, const std::string& right) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_layers, " layers on ", num_stages, " pipeline stages",
                     requested.empty() ? "" : absl::StrCat(" as ", Text(requested)), ": ",
                     absl::StrJoin(wrong, "; "), right.empty() ? "" : "; ", right));
  };
  if (num_stages < 1) return error({"there is at least 1 stage"}, "");
  if (num_layers < num_stages) {
    return error({"every stage needs a layer"},
                 num_layers < 1 ? "" : absl::StrCat("at most ", num_layers, " stages"));
  }
  std::vector<int64_t> layers = EvenSplit(num_layers, num_stages);
  if (!requested.empty()) {
    std::vector<std::string> wrong;
    const bool one_each = requested.size() == layers.size();
    if (!one_each) wrong.push_back(absl::StrCat(requested.size(), " numbers of layers"));
    bool in_range = true;
    for (size_t s = 0; s < requested.size(); ++s) {
      if (requested[s] >= 1 && requested[s] <= num_layers) continue;
      in_range = false;
      wrong.push_back(absl::StrCat("stage ", s, " cannot have ", requested[s], " layers"));
    }
    if (in_range) {
      const int64_t sum = std::accumulate(requested.begin(), requested.end(), int64_t{0});
      if (sum != num_layers) wrong.push_back(absl::StrCat("they add up to ", sum));
    }
    if (!wrong.empty()) {
      return error(wrong, one_each ? absl::StrCat("nearest that adds up: ",
                                                  Text(NearestSplit(num_layers, requested)))
                                   : absl::StrCat("an even split is ", Text(layers)));
    }
    layers.assign(requested.begin(), requested.end());
  }
  std::vector<int64_t> first = {0};
  for (const int64_t count : layers) first.push_back(first.back() + count);
  return first;
}

}  // namespace evenkeel
