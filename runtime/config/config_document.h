// A parsed configuration file with `--set` overrides applied: a tree of maps, lists and scalars
// that remembers where each piece was written. Scalars stay text; config_value.h gives them types.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

// Where something was written: a place in the file, or one of the overrides.
struct ConfigMark {
  int line = 0;  // from 1; 0 if in no file
  int column = 0;
  int override_index = -1;  // into ConfigDocument::overrides; -1 if in the file
};

struct ConfigError {
  ConfigMark mark;
  std::string path;  // "model.hidden_size"; empty if the error is about no key
  std::string message;
};

struct ConfigNode {
  enum class Kind : uint8_t { kNull, kScalar, kList, kMap };
  struct Entry {
    std::string key;
    ConfigMark mark;  // of the key
    int node = 0;
  };

  Kind kind = Kind::kNull;
  bool quoted = false;  // "12" is a string and 12 is a number
  std::string text;     // of a scalar
  ConfigMark mark;
  std::vector<int> items;      // of a list
  std::vector<Entry> entries;  // of a map, keys distinct, in the order of the file
};

struct ConfigDocument {
  std::string name;                    // the file, as the user named it
  std::vector<std::string> overrides;  // "train.lr=3e-4"
  std::vector<ConfigNode> nodes;       // an alias shares the node of its anchor
  int root = 0;                        // a map
  std::vector<ConfigError> errors;     // duplicate keys and the like: what does not stop the parser
};

constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;
constexpr int kMaxConfigNodes = 100000;

// Reads `file`. Fails with kNotFound or kInvalidArgument if it is not a readable text file of at
// most kMaxConfigBytes.
absl::StatusOr<std::string> ReadConfigText(const std::string& file);

// Parses YAML. What makes the whole unreadable (bad syntax, no map at the top, too many nodes) is
// the returned error; what concerns single keys is collected in `errors`.
absl::StatusOr<ConfigDocument> ParseConfigDocument(const std::string& text,
                                                   const std::string& name);

// Sets the key of each "a.b=value" in turn; the last one wins. A value that begins with [, " or '
// is parsed as YAML, any other is taken as it stands. Malformed ones go to `errors`.
void ApplyOverrides(const std::vector<std::string>& overrides, ConfigDocument& document);

// "configs/tiny.yaml:12:3", "--set train.lr=x", or the file's name.
std::string DescribeMark(const ConfigDocument& document, const ConfigMark& mark);

// Returns all errors as one kInvalidArgument status with exit code kUsage, one a line in the order
// of the file, "place: path: message"; OK if there are none.
absl::Status ErrorsToStatus(const ConfigDocument& document, std::vector<ConfigError> errors);

// Shortens and escapes text from the user for a message.
std::string QuoteForMessage(const std::string& text);

}  // namespace evenkeel
