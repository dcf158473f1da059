#include "runtime/config/config_document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <sstream>
#include <system_error>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "runtime/base/exit_code.h"

namespace evenkeel {
namespace {

constexpr size_t kMaxReportedErrors = 100;

absl::Status UsageError(const std::string& message) {
  return WithExitCode(absl::InvalidArgumentError(message), ExitCode::kUsage);
}

ConfigMark ToMark(const YAML::Mark& mark) {
  return {mark.line + 1, mark.column + 1, -1};
}

// Builds the tree from the parser's events, which (unlike YAML::Node) show duplicate keys, whether
// a scalar was quoted, and the place of every key.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& text, ConfigDocument* document)
      : lines_(absl::StrSplit(text, '\n')), document_(document) {}

  int num_documents() const { return num_documents_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) throw YAML::ParserException(mark, "a second document begins here");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Attach(NewNode(ConfigNode::Kind::kNull, mark, anchor));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end()) throw YAML::ParserException(mark, "the alias has no anchor");
    for (const Frame& frame : stack_) {
      if (frame.node == it->second) throw YAML::ParserException(mark, "the alias contains itself");
    }
    Attach(it->second);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    RejectTag(mark, tag);
    if (tag == "!") RejectUnclosedQuote(mark);
    const int id = NewNode(ConfigNode::Kind::kScalar, mark, anchor);
    Node(id).text = value;
    Node(id).quoted = tag == "!";  // what yaml-cpp calls a quoted or block scalar
    Attach(id);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    RejectTag(mark, tag);
    stack_.push_back({NewNode(ConfigNode::Kind::kList, mark, anchor), -1, {}});
  }
  void OnSequenceEnd() override { Pop(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    RejectTag(mark, tag);
    stack_.push_back({NewNode(ConfigNode::Kind::kMap, mark, anchor), -1, {}});
  }
  void OnMapEnd() override { Pop(); }

 private:
  struct Frame {
    int node;
    int key;  // node of a map's key that waits for its value, or -1
    std::unordered_map<std::string, int> lines;  // of the keys so far
  };

  ConfigNode& Node(int id) { return document_->nodes[static_cast<size_t>(id)]; }

  int NewNode(ConfigNode::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (document_->nodes.size() >= kMaxConfigNodes) {
      throw YAML::ParserException(mark, absl::StrCat("more than ", kMaxConfigNodes, " values"));
    }
    const int id = static_cast<int>(document_->nodes.size());
    document_->nodes.emplace_back();
    Node(id).kind = kind;
    Node(id).mark = ToMark(mark);
    if (anchor != YAML::NullAnchor) anchors_[anchor] = id;
    return id;
  }

  void RejectTag(const YAML::Mark& mark, const std::string& tag) {
    if (tag.empty() || tag == "?" || tag == "!") return;
    document_->errors.push_back({ToMark(mark), Path(), "YAML tags (!...) are not supported"});
  }

  // yaml-cpp takes a quote that nothing closes for one that ends with the file.
  void RejectUnclosedQuote(const YAML::Mark& mark) {
    auto line = static_cast<size_t>(mark.line);
    auto column = static_cast<size_t>(mark.column);
    if (line >= lines_.size() || column >= lines_[line].size()) return;
    const char quote = lines_[line][column];
    if (quote != '"' && quote != '\'') return;  // a block scalar
    ++column;
    for (; line < lines_.size(); ++line, column = 0) {
      const absl::string_view at = lines_[line];
      for (; column < at.size(); ++column) {
        const bool escapes = quote == '"' ? at[column] == '\\' : at.substr(column, 2) == "''";
        if (escapes) {
          ++column;
        } else if (at[column] == quote) {
          return;
        }
      }
    }
    throw YAML::ParserException(mark, "the quote that begins here has no end");
  }

  void Pop() {
    const int id = stack_.back().node;
    stack_.pop_back();
    Attach(id);
  }

  void Attach(int id) {
    if (stack_.empty()) {
      document_->root = id;
      return;
    }
    Frame& frame = stack_.back();
    if (Node(frame.node).kind == ConfigNode::Kind::kList) {
      Node(frame.node).items.push_back(id);
    } else if (frame.key < 0) {
      frame.key = id;
    } else {
      AttachEntry(frame, id);
      frame.key = -1;
    }
  }

  void AttachEntry(Frame& frame, int value) {
    const ConfigNode& key = Node(frame.key);
    const auto fail = [&](const std::string& message) {
      document_->errors.push_back({key.mark, Path(), message});
    };
    if (key.kind != ConfigNode::Kind::kScalar) return fail("a key must be a word");
    if (key.text == "<<" && !key.quoted) {
      return fail("merge keys (<<) are not supported; write the keys out");
    }
    const auto [it, is_new] = frame.lines.emplace(key.text, key.mark.line);
    if (!is_new) return fail(absl::StrCat("duplicate key; first given on line ", it->second));
    // The parser notices that a value is missing only where the next thing begins.
    ConfigNode& node = Node(value);
    if (node.kind == ConfigNode::Kind::kNull && node.mark.line != key.mark.line) {
      node.mark = key.mark;
    }
    Node(frame.node).entries.push_back({key.text, key.mark, value});
  }

  std::string Path() {
    std::vector<std::string> keys;
    for (const Frame& frame : stack_) {
      if (frame.key < 0) continue;
      const ConfigNode& key = Node(frame.key);
      keys.push_back(key.kind == ConfigNode::Kind::kScalar ? key.text : "?");
      if (keys.size() == 8) break;  // deeper than any config; bounds what a hostile file prints
    }
    return absl::StrJoin(keys, ".");
  }

  const std::vector<absl::string_view> lines_;
  ConfigDocument* document_;
  int num_documents_ = 0;
  std::vector<Frame> stack_;
  std::unordered_map<YAML::anchor_t, int> anchors_;
};

// Returns why `text` is not UTF-8 text, with the line, or "".
std::string FindNonText(const std::string& text) {
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '\n') ++line;
    if ((c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f) {
      return absl::StrCat("line ", line, " has a control character; this is not a text file");
    }
    const size_t length = c < 0x80           ? 1
                          : (c >> 5) == 0x06 ? 2
                          : (c >> 4) == 0x0e ? 3
                          : (c >> 3) == 0x1e ? 4
                                             : 0;
    bool valid = length > 0 && i + length <= text.size();
    for (size_t j = 1; valid && j < length; ++j) {
      valid = (static_cast<unsigned char>(text[i + j]) & 0xc0) == 0x80;
    }
    if (!valid) return absl::StrCat("line ", line, " is not UTF-8 text");
    i += length;
  }
  return "";
}

// Returns what usually makes the parser stop at `line` (from 0) of `text`, as "; ...", or "". It
// says "illegal map value" or "end of map not found" there, and the mistake may be in the line
// before.
std::string SyntaxHint(const std::string& text, int line) {
  const std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  const auto begins_with_tab = [&](int i) {
    const absl::string_view at = lines[static_cast<size_t>(i)];
    return at.substr(0, at.find_first_not_of(" \t")).find('\t') != absl::string_view::npos;
  };
  if (line < 0 || line >= static_cast<int>(lines.size())) return "";
  int before = line - 1;
  const auto holds_nothing = [&](int i) {
    const absl::string_view words = absl::StripAsciiWhitespace(lines[static_cast<size_t>(i)]);
    return words.empty() || words[0] == '#';
  };
  while (before >= 0 && holds_nothing(before)) --before;
  for (const int i : {before, line}) {
    if (i >= 0 && begins_with_tab(i)) {
      return absl::StrCat("; line ", i + 1, " begins with a tab: indent with spaces");
    }
  }
  if (before < 0) return "";
  return absl::StrCat("; is line ", before + 1, " written 'key: value', with a space after the ",
                      "colon, and are both lines indented as they should be?");
}

// Adds what `text` holds to `document`.
absl::Status ParseInto(const std::string& text, const std::string& place, ConfigDocument& document,
                       int* num_documents) {
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    TreeBuilder builder(text, &document);
    while (parser.HandleNextDocument(builder)) {
    }
    *num_documents = builder.num_documents();
    return absl::OkStatus();
  } catch (const YAML::Exception& e) {
    if (e.mark.is_null()) return UsageError(absl::StrCat(place, ": ", e.msg));
    const std::string hint =
        e.msg == YAML::ErrorMsg::MAP_VALUE || e.msg == YAML::ErrorMsg::END_OF_MAP
            ? SyntaxHint(text, e.mark.line)
            : "";
    return UsageError(
        absl::StrCat(place, ":", e.mark.line + 1, ":", e.mark.column + 1, ": ", e.msg, hint));
  }
}

ConfigNode ParseOverrideValue(const std::string& value, int index, ConfigDocument& document,
                              std::string* error) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kScalar;
  node.mark.override_index = index;
  node.text = value;
  if (value.empty()) {
    node.quoted = true;  // the shell has eaten the quotes of --set name=""
    return node;
  }
  if (value == "null" || value == "~") node.kind = ConfigNode::Kind::kNull;
  if (value[0] == '{') *error = "the value is a map; set its keys one by one";
  if (value[0] != '[' && value[0] != '"' && value[0] != '\'') return node;
  int num_documents = 0;
  ConfigDocument parsed;
  const absl::Status status = ParseInto(value, "value", parsed, &num_documents);
  if (!status.ok() || !parsed.errors.empty() || parsed.nodes.empty()) {
    *error = status.ok() ? "the value is not valid" : std::string(status.message());
    return node;
  }
  const int offset = static_cast<int>(document.nodes.size());
  for (ConfigNode& child : parsed.nodes) {
    child.mark = node.mark;
    for (int& item : child.items) item += offset;
    for (ConfigNode::Entry& entry : child.entries)
      entry = {entry.key, node.mark, entry.node + offset};
    document.nodes.push_back(std::move(child));
  }
  return document.nodes[static_cast<size_t>(parsed.root + offset)];
}

}  // namespace

absl::StatusOr<std::string> ReadConfigText(const std::string& file) {
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) {
    return UsageError(absl::StrCat(file, ": is a folder; a config is a YAML file"));
  }
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(file.c_str(), "rb"),
                                                         std::fclose);
  if (stream == nullptr) {
    return WithExitCode(absl::NotFoundError(absl::StrCat(
                            file, ": cannot read the config file: ", std::strerror(errno))),
                        ExitCode::kUsage);
  }
  std::string text(static_cast<size_t>(kMaxConfigBytes) + 1, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), stream.get()));
  if (std::ferror(stream.get()) != 0) {
    return UsageError(absl::StrCat(file, ": cannot read the config file"));
  }
  if (static_cast<int64_t>(text.size()) > kMaxConfigBytes) {
    return UsageError(absl::StrCat(file, ": larger than 1 MiB; this is not a config file"));
  }
  return text;
}

absl::StatusOr<ConfigDocument> ParseConfigDocument(const std::string& text,
                                                   const std::string& name) {
  if (const std::string reason = FindNonText(text); !reason.empty()) {
    return UsageError(absl::StrCat(name, ": ", reason));
  }
  ConfigDocument document;
  document.name = name;
  int num_documents = 0;
  if (absl::Status status = ParseInto(text, name, document, &num_documents); !status.ok()) {
    return status;
  }
  if (num_documents == 0 || document.nodes.empty() ||
      document.nodes[static_cast<size_t>(document.root)].kind == ConfigNode::Kind::kNull) {
    return UsageError(absl::StrCat(name, ": has no keys"));
  }
  const ConfigNode& root = document.nodes[static_cast<size_t>(document.root)];
  if (root.kind != ConfigNode::Kind::kMap) {
    return UsageError(absl::StrCat(DescribeMark(document, root.mark),
                                   ": the file must hold keys with values (key: value)"));
  }
  return document;
}

void ApplyOverrides(const std::vector<std::string>& overrides, ConfigDocument& document) {
  for (const std::string& text : overrides) {
    const int index = static_cast<int>(document.overrides.size());
    document.overrides.push_back(text);
    const ConfigMark mark{0, 0, index};
    const auto fail = [&](const std::string& path, const std::string& message) {
      document.errors.push_back({mark, path, message});
    };
    const size_t equals = text.find('=');
    const std::string path = text.substr(0, equals);
    const std::vector<std::string> keys = absl::StrSplit(path, '.');
    if (equals == std::string::npos || std::find(keys.begin(), keys.end(), "") != keys.end()) {
      fail("", "write it as section.key=value");
      continue;
    }
    if (!FindNonText(text).empty()) {
      fail(path, "the value is not text");
      continue;
    }
    std::string error;
    ConfigNode value = ParseOverrideValue(text.substr(equals + 1), index, document, &error);
    if (!error.empty()) {
      fail(path, error);
      continue;
    }
    // Maps on the way are copied before they change: an alias elsewhere may share them.
    int* slot = &document.root;
    bool is_map = true;
    for (const std::string& key : keys) {
      ConfigNode map = document.nodes[static_cast<size_t>(*slot)];
      if (map.kind == ConfigNode::Kind::kNull) map.kind = ConfigNode::Kind::kMap;
      is_map = map.kind == ConfigNode::Kind::kMap;
      if (!is_map) break;
      auto entry = std::find_if(map.entries.begin(), map.entries.end(),
                                [&](const ConfigNode::Entry& e) { return e.key == key; });
      if (entry == map.entries.end()) {
        ConfigNode empty;
        empty.mark = mark;
        map.entries.push_back({key, mark, static_cast<int>(document.nodes.size())});
        document.nodes.push_back(empty);
        entry = map.entries.end() - 1;
      }
      if (&key == &keys.back()) entry->mark = mark;
      const auto position = static_cast<size_t>(entry - map.entries.begin());
      const int copy = static_cast<int>(document.nodes.size());
      *slot = copy;
      document.nodes.push_back(std::move(map));
      slot = &document.nodes[static_cast<size_t>(copy)].entries[position].node;
    }
    if (!is_map) {
      fail(path, "part of this path is a value, not a section");
      continue;
    }
    *slot = static_cast<int>(document.nodes.size());
    document.nodes.push_back(std::move(value));
  }
}

std::string DescribeMark(const ConfigDocument& document, const ConfigMark& mark) {
  if (mark.override_index >= 0) {
    return absl::StrCat(
        "--set ", QuoteForMessage(document.overrides[static_cast<size_t>(mark.override_index)]));
  }
  if (mark.line > 0) return absl::StrCat(document.name, ":", mark.line, ":", mark.column);
  return document.name;
}

absl::Status ErrorsToStatus(const ConfigDocument& document, std::vector<ConfigError> errors) {
  if (errors.empty()) return absl::OkStatus();
  std::stable_sort(errors.begin(), errors.end(), [](const ConfigError& a, const ConfigError& b) {
    return std::tie(a.mark.override_index, a.mark.line, a.mark.column) <
           std::tie(b.mark.override_index, b.mark.line, b.mark.column);
  });
  std::vector<std::string> lines;
  for (const ConfigError& error : errors) {
    if (lines.size() == kMaxReportedErrors) {
      lines.push_back(absl::StrCat("and ", errors.size() - kMaxReportedErrors, " more errors"));
      break;
    }
    lines.push_back(absl::StrCat(DescribeMark(document, error.mark), ": ",
                                 error.path.empty() ? "" : QuoteForMessage(error.path) + ": ",
                                 error.message));
  }
  return UsageError(absl::StrJoin(lines, "\n"));
}

std::string QuoteForMessage(const std::string& text) {
  constexpr size_t kMaxLength = 100;
  std::string out;
  for (const char c : text) {
    const bool starts_character = (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    if (out.size() >= kMaxLength && starts_character) return out + "...";
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte == 0x7f ? absl::StrCat("\\x", absl::Hex(byte, absl::kZeroPad2))
                                       : std::string(1, c);
  }
  return out;
}

}  // namespace evenkeel
