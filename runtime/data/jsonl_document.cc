#include "runtime/data/jsonl_document.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/data/data_error.h"
#include "runtime/data/utf8.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 128;

// Follows the parser's events and keeps one string; no document tree is built. A handler that
// returns false stops the parser, which throws nothing then.
class TextOfKey : public nlohmann::json_sax<Json> {
 public:
  explicit TextOfKey(const std::string& key) : key_(key) {}

  const std::string& error() const { return error_; }
  bool found() const { return found_; }
  std::string& text() { return text_; }

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(number_integer_t) override { return Value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a number"); }
  bool binary(binary_t&) override { return Value("binary"); }
  bool string(string_t& value) override {
    if (depth_ == 0) return Value("a string");
    if (!at_key_) return true;
    at_key_ = false;
    text_ = std::move(value);
    return true;
  }
  bool start_object(size_t) override { return Open(/*is_object=*/true); }
  bool start_array(size_t) override { return Open(/*is_object=*/false); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    if (depth_ != 1 || name != key_) return true;
    if (found_) return Fail(absl::StrCat("has the key \"", key_, "\" twice"));
    found_ = at_key_ = true;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return Fail(absl::StrCat("is not valid JSON at byte ", position));
  }

 private:
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }
  bool Value(const char* kind) {
    if (depth_ == 0) return Fail(absl::StrCat("is ", kind, ", not an object"));
    if (at_key_) return Fail(absl::StrCat("has ", kind, " under \"", key_, "\", not a string"));
    return true;
  }
  bool Open(bool is_object) {
    if (depth_ == 0 && !is_object) return Fail("is an array, not an object");
    if (at_key_) return Value(is_object ? "an object" : "an array");
    if (++depth_ > kMaxDepth)
      return Fail(absl::StrCat("is nested over ", kMaxDepth, " levels deep"));
    return true;
  }
  bool Close() {
    --depth_;
    return true;
  }

  const std::string& key_;
  std::string text_, error_;
  int depth_ = 0;
  bool found_ = false;
  bool at_key_ = false;  // the next value is the one under key_
};

}  // namespace

absl::StatusOr<std::string> ParseJsonlDocument(const std::string& line, const std::string& key) {
  if (const size_t nul = line.find('\0'); nul != std::string::npos) {
    return DataError(absl::StrCat("has a NUL at byte ", nul + 1));
  }
  if (const int64_t bad = FindInvalidUtf8(line); bad >= 0) {
    return DataError(absl::StrCat("is not UTF-8 at byte ", bad + 1));
  }
  TextOfKey handler(key);
  const bool valid = Json::sax_parse(line, &handler);
  if (!valid) return DataError(handler.error());
  if (!handler.found()) return DataError(absl::StrCat("has no key \"", key, "\""));
  return std::move(handler.text());
}

}  // namespace evenkeel
