// One description of a config struct that reads it from YAML, writes it as YAML and lists its keys:
//
//   void DescribeTrainConfig(TrainConfig& c, ConfigFields& f) {
//     f.Int("steps", &c.steps, "optimizer steps", 1, kNoMaximum);
//     f.Float("lr", &c.lr, "peak learning rate", 0, 1);
//     if (c.warmup > c.steps) f.Error("warmup", "longer than the run");
//   }
//
// A description must name the same keys whatever the values are, each key once. Cross-field checks
// follow the fields they need.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/check.h"
#include "runtime/config/config_document.h"

namespace evenkeel {

constexpr int64_t kNoMinimum = std::numeric_limits<int64_t>::min();
constexpr int64_t kNoMaximum = std::numeric_limits<int64_t>::max();

struct KeyDescription {
  std::string path;           // "model.hidden_size"
  std::string type;           // "int", "float", "bool", "string", "list of strings", "a | b | c"
  std::string default_value;  // as YAML; "null" for an optional without a value
  std::string help;
  std::string limits;  // "at least 1", or empty
  bool required = false;
};

class ConfigFields {
 public:
  using Description = std::function<void(ConfigFields&)>;

  // Each names a key of the current section, its storage (which holds the default), one line of
  // help, and the least and greatest allowed value. A null in the file is an error, but for the
  // optional kinds, where it means "derive it".
  void Int(const char* key, int64_t* value, const char* help, int64_t min, int64_t max);
  void Int(const char* key, int* value, const char* help, int64_t min, int64_t max);
  void Int(const char* key, std::optional<int64_t>* value, const char* help, int64_t min,
           int64_t max);
  // Infinite limits mean none; the value itself is always finite.
  void Float(const char* key, double* value, const char* help, double min, double max);
  void Float(const char* key, std::optional<double>* value, const char* help, double min,
             double max);
  void Bool(const char* key, bool* value, const char* help);
  void String(const char* key, std::string* value, const char* help);
  void StringList(const char* key, std::vector<std::string>* value, const char* help);
  template <typename E>
  void Enum(const char* key, E* value, const char* help,
            std::initializer_list<std::pair<const char*, E>> names);

  // The key just described must be in the file or among the overrides.
  void Required(const char* key);

  // Describes the keys below `key`. A section that is absent from the file keeps its defaults.
  void Section(const char* key, const char* help, const Description& fields);

  // Reports that a check over several fields failed. `key` is relative to the current section and
  // may be dotted; the message names its place if it was given. Dropped if the key already has an
  // error (its storage then still holds the default), and when writing or listing.
  void Error(const char* key, const std::string& message);
  // Whether `key` (as for Error) has one: what follows from its value is then not to be told.
  bool HasError(const char* key) const { return failed_paths_.count(prefix_ + key) > 0; }

 private:
  enum class Mode : uint8_t { kRead, kWrite, kList };

  explicit ConfigFields(Mode mode) : mode_(mode) {}
  static std::vector<KeyDescription> List(const Description& fields,
                                          std::vector<std::string>* section_paths);
  friend absl::Status ReadConfigFromText(const std::string&, const std::string&,
                                         const std::vector<std::string>&, const Description&);
  friend std::string WriteConfig(const Description&);
  friend std::vector<KeyDescription> ListConfigKeys(const Description&);

  // Handles one key. When reading, returns its node if it was given (and marks it as known); when
  // writing or listing, records it and returns null.
  const ConfigNode* Field(const char* key, const std::string& type, const std::string& value,
                          const std::string& help, const std::string& limits);
  // The same for a key that must hold a scalar: a list, a section or null is an error, not a
  // result.
  const ConfigNode* ScalarField(const char* key, const std::string& type, const std::string& value,
                                const std::string& help, const std::string& limits);
  // Returns the index of the name that was given, or `current`.
  int Choice(const char* key, int current, const char* help, const std::vector<std::string>& names);
  void CheckUnknownKeys();
  void Fail(const ConfigMark& mark, const std::string& path, const std::string& message);
  const ConfigNode::Entry* FindEntry(const std::string& key) const;

  Mode mode_;
  std::string prefix_;               // "model.", or empty at the top
  std::set<std::string> described_;  // keys of the current section

  // Reading.
  const ConfigDocument* document_ = nullptr;
  const ConfigNode* map_ = nullptr;  // the current section; null if it is absent
  ConfigMark section_mark_;
  std::vector<std::string> known_paths_;  // keys and sections, for hints
  std::vector<ConfigError> errors_;
  std::set<std::string> failed_paths_;

  // Writing and listing.
  std::string text_;
  std::vector<KeyDescription> keys_;
  std::vector<std::string> section_paths_;
};

// Reads `file` and then the overrides ("a.b=c", which win) into the storage that `fields` names.
// All errors are collected: unknown and duplicate keys, wrong types, values out of range, missing
// keys, failed checks. Fails with kInvalidArgument (exit code kUsage), one error a line:
//   configs/x.yaml:12:3: model.hiden_size: unknown key; did you mean hidden_size?
//   --set train.lr=fast: train.lr: expected a number, got fast
// After a failure the storage holds a mixture of what was read and defaults.
absl::Status ReadConfig(const std::string& file, const std::vector<std::string>& overrides,
                        const ConfigFields::Description& fields);

// The same for YAML text; `name` stands for the file in messages.
absl::Status ReadConfigFromText(const std::string& text, const std::string& name,
                                const std::vector<std::string>& overrides,
                                const ConfigFields::Description& fields);

// Returns the present values of all keys as YAML with the help as comments. Reading it back gives
// the same values, bit for bit.
std::string WriteConfig(const ConfigFields::Description& fields);

// Returns all keys in the order of their description.
std::vector<KeyDescription> ListConfigKeys(const ConfigFields::Description& fields);

template <typename E>
void ConfigFields::Enum(const char* key, E* value, const char* help,
                        std::initializer_list<std::pair<const char*, E>> names) {
  std::vector<std::string> words;
  int current = -1;
  for (const auto& [name, enumerator] : names) {
    if (enumerator == *value) current = static_cast<int>(words.size());
    words.emplace_back(name);
  }
  EK_CHECK(current >= 0) << "the default of " << key << " has no name";
  *value = names.begin()[Choice(key, current, help, words)].second;
}

}  // namespace evenkeel
