#include "runtime/config/config_fields.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status_macros.h"
#include "runtime/config/config_value.h"
#include "runtime/config/nearest_key.h"

namespace evenkeel {
namespace {

// Errors beyond these get no hint: the cost of a hostile file stays small.
constexpr size_t kMaxHints = 100;

std::string LimitText(bool has_min, const std::string& min, bool has_max, const std::string& max) {
  if (has_min && has_max) return absl::StrCat("between ", min, " and ", max);
  if (has_min) return absl::StrCat("at least ", min);
  if (has_max) return absl::StrCat("at most ", max);
  return "";
}

std::string IntLimits(int64_t min, int64_t max) {
  return LimitText(min != kNoMinimum, absl::StrCat(min), max != kNoMaximum, absl::StrCat(max));
}

std::string FloatLimits(double min, double max) {
  return LimitText(std::isfinite(min), FormatFloatValue(min), std::isfinite(max),
                   FormatFloatValue(max));
}

std::string FormatList(const std::vector<std::string>& values) {
  std::vector<std::string> words;
  for (const std::string& value : values) words.push_back(FormatStringValue(value));
  return absl::StrCat("[", absl::StrJoin(words, ", "), "]");
}

std::string DescribeNode(const ConfigNode& node) {
  switch (node.kind) {
    case ConfigNode::Kind::kNull:
      return "nothing";
    case ConfigNode::Kind::kList:
      return "a list";
    case ConfigNode::Kind::kMap:
      return "a section";
    case ConfigNode::Kind::kScalar:
      return QuoteForMessage(node.text);
  }
  return "";
}

// Returns "" and sets `value`, or the error.
std::string ReadInt(const ConfigNode& node, int64_t min, int64_t max, int64_t* value) {
  int64_t parsed = 0;
  if (std::string error = ParseIntValue(node.text, node.quoted, &parsed); !error.empty()) {
    return error;
  }
  if (parsed < min || parsed > max) {
    return absl::StrCat("must be ", IntLimits(min, max), ", got ", parsed);
  }
  *value = parsed;
  return "";
}

std::string ReadFloat(const ConfigNode& node, double min, double max, double* value) {
  double parsed = 0;
  if (std::string error = ParseFloatValue(node.text, node.quoted, &parsed); !error.empty()) {
    return error;
  }
  if (parsed < min || parsed > max) {
    return absl::StrCat("must be ", FloatLimits(min, max), ", got ", QuoteForMessage(node.text));
  }
  *value = parsed;
  return "";
}

}  // namespace

void ConfigFields::Int(const char* key, int64_t* value, const char* help, int64_t min,
                       int64_t max) {
  const ConfigNode* node = ScalarField(key, "int", absl::StrCat(*value), help, IntLimits(min, max));
  if (node == nullptr) return;
  Fail(node->mark, prefix_ + key, ReadInt(*node, min, max, value));
}

void ConfigFields::Int(const char* key, int* value, const char* help, int64_t min, int64_t max) {
  int64_t wide = *value;
  Int(key, &wide, help, min, max);
  if (wide < std::numeric_limits<int>::min() || wide > std::numeric_limits<int>::max()) {
    Fail(FindEntry(key)->mark, prefix_ + key, absl::StrCat(wide, " does not fit 32 bits"));
    return;
  }
  *value = static_cast<int>(wide);
}

void ConfigFields::Int(const char* key, std::optional<int64_t>* value, const char* help,
                       int64_t min, int64_t max) {
  const ConfigNode* node = Field(key, "int", value->has_value() ? absl::StrCat(**value) : "null",
                                 help, IntLimits(min, max));
  if (node == nullptr) return;
  if (node->kind == ConfigNode::Kind::kNull) {
    value->reset();
  } else if (node->kind != ConfigNode::Kind::kScalar) {
    Fail(node->mark, prefix_ + key, absl::StrCat("expected an integer, got ", DescribeNode(*node)));
  } else {
    int64_t parsed = 0;
    const std::string error = ReadInt(*node, min, max, &parsed);
    Fail(node->mark, prefix_ + key, error);
    if (error.empty()) *value = parsed;
  }
}

void ConfigFields::Float(const char* key, double* value, const char* help, double min, double max) {
  const ConfigNode* node =
      ScalarField(key, "float", FormatFloatValue(*value), help, FloatLimits(min, max));
  if (node == nullptr) return;
  Fail(node->mark, prefix_ + key, ReadFloat(*node, min, max, value));
}

void ConfigFields::Float(const char* key, std::optional<double>* value, const char* help,
                         double min, double max) {
  const ConfigNode* node =
      Field(key, "float", value->has_value() ? FormatFloatValue(**value) : "null", help,
            FloatLimits(min, max));
  if (node == nullptr) return;
  if (node->kind == ConfigNode::Kind::kNull) {
    value->reset();
  } else if (node->kind != ConfigNode::Kind::kScalar) {
    Fail(node->mark, prefix_ + key, absl::StrCat("expected a number, got ", DescribeNode(*node)));
  } else {
    double parsed = 0;
    const std::string error = ReadFloat(*node, min, max, &parsed);
    Fail(node->mark, prefix_ + key, error);
    if (error.empty()) *value = parsed;
  }
}

void ConfigFields::Bool(const char* key, bool* value, const char* help) {
  const ConfigNode* node = ScalarField(key, "bool", *value ? "true" : "false", help, "");
  if (node == nullptr) return;
  Fail(node->mark, prefix_ + key, ParseBoolValue(node->text, node->quoted, value));
}

void ConfigFields::String(const char* key, std::string* value, const char* help) {
  const ConfigNode* node = ScalarField(key, "string", FormatStringValue(*value), help, "");
  if (node != nullptr) *value = node->text;
}

void ConfigFields::StringList(const char* key, std::vector<std::string>* value, const char* help) {
  const ConfigNode* node = Field(key, "list of strings", FormatList(*value), help, "");
  if (node == nullptr) return;
  if (node->kind != ConfigNode::Kind::kList) {
    Fail(node->mark, prefix_ + key,
         absl::StrCat("expected a list like [a, b], got ", DescribeNode(*node)));
    return;
  }
  std::vector<std::string> items;
  for (const int id : node->items) {
    const ConfigNode& item = document_->nodes[static_cast<size_t>(id)];
    if (item.kind != ConfigNode::Kind::kScalar) {
      Fail(item.mark, prefix_ + key,
           absl::StrCat("expected a list of strings, got ", DescribeNode(item), " in it"));
      return;
    }
    items.push_back(item.text);
  }
  *value = std::move(items);
}

int ConfigFields::Choice(const char* key, int current, const char* help,
                         const std::vector<std::string>& names) {
  const ConfigNode* node =
      ScalarField(key, absl::StrJoin(names, " | "),
                  FormatStringValue(names[static_cast<size_t>(current)]), help, "");
  if (node == nullptr) return current;
  const auto it = std::find(names.begin(), names.end(), node->text);
  if (it != names.end()) return static_cast<int>(it - names.begin());
  const std::string nearest = NearestWord(node->text, names);
  Fail(node->mark, prefix_ + key,
       absl::StrCat("unknown value ", QuoteForMessage(node->text),
                    nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                    " (one of ", absl::StrJoin(names, ", "), ")"));
  return current;
}

void ConfigFields::Required(const char* key) {
  EK_CHECK(described_.count(key) == 1) << "Required() before its field: " << prefix_ << key;
  if (mode_ == Mode::kRead && FindEntry(key) == nullptr) {
    Fail(section_mark_, prefix_ + key, "missing; this key must be given");
  }
  if (mode_ == Mode::kList) {
    for (KeyDescription& description : keys_) {
      if (description.path == prefix_ + key) description.required = true;
    }
  }
}

void ConfigFields::Section(const char* key, const char* help, const Description& fields) {
  EK_CHECK(described_.insert(key).second) << "described twice: " << prefix_ << key;
  const std::string outer_prefix = prefix_;
  const ConfigNode* outer_map = map_;
  const ConfigMark outer_mark = section_mark_;
  std::set<std::string> outer_described;
  outer_described.swap(described_);

  bool readable = true;
  if (mode_ == Mode::kWrite) {
    const auto depth = static_cast<size_t>(std::count(prefix_.begin(), prefix_.end(), '.'));
    absl::StrAppend(&text_, "\n", std::string(2 * depth, ' '), key, ":  # ", help, "\n");
  } else if (mode_ == Mode::kList) {
    section_paths_.push_back(prefix_ + key);
  } else if (const ConfigNode::Entry* entry = FindEntry(key); entry != nullptr) {
    const ConfigNode& node = document_->nodes[static_cast<size_t>(entry->node)];
    section_mark_ = entry->mark;
    readable = node.kind == ConfigNode::Kind::kMap || node.kind == ConfigNode::Kind::kNull;
    if (!readable) {
      Fail(node.mark, prefix_ + key,
           absl::StrCat("expected a section with keys of its own, got ", DescribeNode(node)));
    }
    map_ = node.kind == ConfigNode::Kind::kMap ? &node : nullptr;
  } else {
    map_ = nullptr;
  }
  if (readable) {
    absl::StrAppend(&prefix_, key, ".");
    fields(*this);
    if (mode_ == Mode::kRead) CheckUnknownKeys();
  }

  prefix_ = outer_prefix;
  map_ = outer_map;
  section_mark_ = outer_mark;
  described_.swap(outer_described);
}

void ConfigFields::Error(const char* key, const std::string& message) {
  if (mode_ != Mode::kRead) return;
  if (HasError(key)) return;
  const std::string path = prefix_ + key;
  ConfigMark mark = section_mark_;
  const ConfigNode* map = map_;
  const std::vector<std::string> parts = absl::StrSplit(key, '.');
  for (const std::string& part : parts) {
    if (map == nullptr) break;
    const auto it = std::find_if(map->entries.begin(), map->entries.end(),
                                 [&](const ConfigNode::Entry& e) { return e.key == part; });
    if (it == map->entries.end()) break;
    mark = it->mark;
    map = &document_->nodes[static_cast<size_t>(it->node)];
  }
  Fail(mark, path, message);
}

const ConfigNode* ConfigFields::Field(const char* key, const std::string& type,
                                      const std::string& value, const std::string& help,
                                      const std::string& limits) {
  EK_CHECK(described_.insert(key).second) << "described twice: " << prefix_ << key;
  if (mode_ == Mode::kWrite) {
    const auto depth = static_cast<size_t>(std::count(prefix_.begin(), prefix_.end(), '.'));
    const bool is_choice = type.find('|') != std::string::npos;
    absl::StrAppend(&text_, std::string(2 * depth, ' '), key, ": ", value, "  # ", help,
                    is_choice ? absl::StrCat(" (", type, ")") : "",
                    limits.empty() ? "" : absl::StrCat(" (", limits, ")"), "\n");
    return nullptr;
  }
  if (mode_ == Mode::kList) {
    keys_.push_back({prefix_ + key, type, value, help, limits, false});
    return nullptr;
  }
  const ConfigNode::Entry* entry = FindEntry(key);
  return entry == nullptr ? nullptr : &document_->nodes[static_cast<size_t>(entry->node)];
}

const ConfigNode* ConfigFields::ScalarField(const char* key, const std::string& type,
                                            const std::string& value, const std::string& help,
                                            const std::string& limits) {
  const ConfigNode* node = Field(key, type, value, help, limits);
  if (node == nullptr || node->kind == ConfigNode::Kind::kScalar) return node;
  const std::string expected = type == "int"      ? "an integer"
                               : type == "float"  ? "a number"
                               : type == "bool"   ? "true or false"
                               : type == "string" ? "a string"
                                                  : absl::StrCat("one of ", type);
  Fail(node->mark, prefix_ + key,
       absl::StrCat("expected ", expected, ", got ", DescribeNode(*node)));
  return nullptr;
}

void ConfigFields::CheckUnknownKeys() {
  if (map_ == nullptr) return;
  for (const ConfigNode::Entry& entry : map_->entries) {
    if (described_.count(entry.key) > 0) continue;
    const std::string path = prefix_ + entry.key;
    const bool is_dotted_path =
        std::find(known_paths_.begin(), known_paths_.end(), path) != known_paths_.end();
    Fail(entry.mark, path,
         is_dotted_path ? "a dotted key; in a file, write the section and its keys below it"
         : errors_.size() < kMaxHints ? absl::StrCat("unknown key", SuggestKey(path, known_paths_))
                                      : "unknown key");
  }
}

void ConfigFields::Fail(const ConfigMark& mark, const std::string& path,
                        const std::string& message) {
  if (message.empty()) return;
  errors_.push_back({mark, path, message});
  failed_paths_.insert(path);
}

const ConfigNode::Entry* ConfigFields::FindEntry(const std::string& key) const {
  if (map_ == nullptr) return nullptr;
  const auto it = std::find_if(map_->entries.begin(), map_->entries.end(),
                               [&](const ConfigNode::Entry& e) { return e.key == key; });
  return it == map_->entries.end() ? nullptr : &*it;
}

std::vector<KeyDescription> ConfigFields::List(const Description& fields,
                                               std::vector<std::string>* section_paths) {
  ConfigFields lister(Mode::kList);
  fields(lister);
  *section_paths = std::move(lister.section_paths_);
  return std::move(lister.keys_);
}

absl::Status ReadConfig(const std::string& file, const std::vector<std::string>& overrides,
                        const ConfigFields::Description& fields) {
  EK_ASSIGN_OR_RETURN(const std::string text, ReadConfigText(file));
  return ReadConfigFromText(text, file, overrides, fields);
}

absl::Status ReadConfigFromText(const std::string& text, const std::string& name,
                                const std::vector<std::string>& overrides,
                                const ConfigFields::Description& fields) {
  EK_ASSIGN_OR_RETURN(ConfigDocument document, ParseConfigDocument(text, name));
  ApplyOverrides(overrides, document);
  ConfigFields reader(ConfigFields::Mode::kRead);
  for (const KeyDescription& key : ConfigFields::List(fields, &reader.known_paths_)) {
    reader.known_paths_.push_back(key.path);
  }
  reader.document_ = &document;
  reader.map_ = &document.nodes[static_cast<size_t>(document.root)];
  for (ConfigError& error : document.errors) {
    reader.Fail(error.mark, error.path, error.message);
  }
  fields(reader);
  reader.CheckUnknownKeys();
  return ErrorsToStatus(document, std::move(reader.errors_));
}

std::string WriteConfig(const ConfigFields::Description& fields) {
  ConfigFields writer(ConfigFields::Mode::kWrite);
  fields(writer);
  return std::move(writer.text_);
}

std::vector<KeyDescription> ListConfigKeys(const ConfigFields::Description& fields) {
  std::vector<std::string> section_paths;
  return ConfigFields::List(fields, &section_paths);
}

}  // namespace evenkeel
