// Options of the command line whose values have names.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <utility>
#include <vector>

namespace evenkeel {

// Adds an option that takes one of `names` and sets `value`, an E or an optional one. CLI11's own
// transformer shows the numbers behind an enum in help and errors.
template <typename E, typename Value>
CLI::Option* AddEnumOption(CLI::App& command, const std::string& flags, Value* value,
                           const std::string& help,
                           const std::vector<std::pair<std::string, E>>& names) {
  std::vector<std::string> words;
  for (const auto& [name, enumerator] : names) words.push_back(name);
  const auto choose = [value, names](const std::string& word) {
    for (const auto& [name, enumerator] : names) {
      if (name == word) *value = enumerator;
    }
  };
  CLI::Option* option = command.add_option_function<std::string>(flags, choose, help)
                            ->check(CLI::IsMember(std::move(words)));
  for (const auto& [name, enumerator] : names) {
    if (*value == enumerator) option->default_str(name);
  }
  return option;
}

}  // namespace evenkeel
