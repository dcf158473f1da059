#include "runtime/config/nearest_key.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace evenkeel {
namespace {

constexpr size_t kMaxWordLength =
    64;  // longer words get no hint, so that hostile ones cost nothing

std::string Fold(const std::string& word) {
  return absl::StrReplaceAll(absl::AsciiStrToLower(word), {{"-", "_"}});
}

// "model.hidden_size" -> "hidden_size"
std::string LeafOf(const std::string& path) {
  return path.substr(path.rfind('.') + 1);
}

// "model.hidden_size" -> "model."
std::string SectionOf(const std::string& path) {
  return path.substr(0, path.rfind('.') + 1);
}

}  // namespace

int EditDistance(const std::string& a, const std::string& b) {
  const std::string x = Fold(a), y = Fold(b);
  const size_t rows = x.size() + 1, columns = y.size() + 1;
  std::vector<int> d(rows * columns);
  const auto at = [&](size_t i, size_t j) -> int& { return d[i * columns + j]; };
  for (size_t i = 0; i < rows; ++i) at(i, 0) = static_cast<int>(i);
  for (size_t j = 0; j < columns; ++j) at(0, j) = static_cast<int>(j);
  for (size_t i = 1; i < rows; ++i) {
    for (size_t j = 1; j < columns; ++j) {
      const int substitution = at(i - 1, j - 1) + (x[i - 1] == y[j - 1] ? 0 : 1);
      at(i, j) = std::min({at(i - 1, j) + 1, at(i, j - 1) + 1, substitution});
      if (i > 1 && j > 1 && x[i - 1] == y[j - 2] && x[i - 2] == y[j - 1]) {
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
      }
    }
  }
  return at(rows - 1, columns - 1);
}

std::string NearestWord(const std::string& word, const std::vector<std::string>& candidates) {
  if (word.empty() || word.size() > kMaxWordLength) return "";
  std::string nearest;
  int best = static_cast<int>(std::max<size_t>(word.size() / 3, 1)) + 1;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(word, candidate);
    // A word of two letters is not "near" another one by changing half of it.
    if (distance < best && static_cast<size_t>(distance) * 2 <= candidate.size()) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string SuggestKey(const std::string& path, const std::vector<std::string>& all_paths) {
  if (path.size() > 4 * kMaxWordLength) return "";
  const std::string leaf = LeafOf(path), section = SectionOf(path);
  std::vector<std::string> same_name, same_section, names;
  for (const std::string& candidate : all_paths) {
    if (Fold(LeafOf(candidate)) == Fold(leaf) && candidate != path) {
      same_name.push_back(candidate);
    }
    if (SectionOf(candidate) == section) same_section.push_back(LeafOf(candidate));
    names.push_back(LeafOf(candidate));
  }
  const std::string sibling = NearestWord(leaf, same_section);
  if (!sibling.empty() && Fold(sibling) == Fold(leaf)) {
    return absl::StrCat("; did you mean ", sibling, "?");
  }
  if (!same_name.empty() && same_name.size() <= 3) {
    return absl::StrCat("; did you mean ", absl::StrJoin(same_name, " or "), "?");
  }
  if (!sibling.empty()) return absl::StrCat("; did you mean ", sibling, "?");
  const std::string name = NearestWord(leaf, names);
  if (name.empty()) return "";
  const auto it = std::find(names.begin(), names.end(), name);
  return absl::StrCat("; did you mean ", all_paths[static_cast<size_t>(it - names.begin())], "?");
}

}  // namespace evenkeel
