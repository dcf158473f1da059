// Finds what a mistyped word was meant to be.
#pragma once

#include <string>
#include <vector>

namespace evenkeel {

// Returns the number of insertions, deletions, substitutions and swaps of neighbours that turn `a`
// into `b` (optimal string alignment distance), ignoring case and taking - for _.
int EditDistance(const std::string& a, const std::string& b);

// Returns the candidate nearest to `word` if it is near enough to be meant, else "".
std::string NearestWord(const std::string& word, const std::vector<std::string>& candidates);

// Returns a hint for the unknown key `path`, given the paths of all keys ("model.hidden_size"): a
// key of the same name in another section, else the nearest in the same section, else the nearest
// anywhere; "; did you mean train.lr?", or "" if nothing is near.
std::string SuggestKey(const std::string& path, const std::vector<std::string>& all_paths);

}  // namespace evenkeel
