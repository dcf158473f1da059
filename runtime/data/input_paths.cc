#include "runtime/data/input_paths.h"

#include <dirent.h>
#include <fnmatch.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status_macros.h"
#include "runtime/data/data_error.h"

namespace evenkeel {
namespace {

// Returns the names in a folder; those that start with a dot are left out unless `with_hidden`.
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& folder, bool with_hidden) {
  struct Close {
    void operator()(DIR* dir) const { closedir(dir); }
  };
  const std::unique_ptr<DIR, Close> dir(opendir(folder.c_str()));
  if (dir == nullptr) {
    return DataError(absl::StrCat(folder, ": cannot be listed: ", std::strerror(errno)));
  }
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(dir.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || (name[0] == '.' && !with_hidden)) continue;
    names.push_back(name);
  }
  if (errno != 0) {
    return DataError(absl::StrCat(folder, ": cannot be listed: ", std::strerror(errno)));
  }
  return names;
}

bool HasWildcard(const std::string& part) {
  return part.find_first_of("*?[") != std::string::npos;
}

// Matches the parts of a pattern from `next` on below `folder` ("" or ending in '/').
class PatternWalk {
 public:
  explicit PatternWalk(std::vector<std::string> parts) : parts_(std::move(parts)) {}

  absl::Status Visit(const std::string& folder, size_t next) {
    // With several `**` one folder is reached in several ways; what lies below it is the same.
    if (!visited_.insert({folder, next}).second) return absl::OkStatus();
    const std::string& part = parts_[next];
    const bool last = next + 1 == parts_.size();
    if (part != "**" && !HasWildcard(part)) return Enter(folder + part, next);
    const bool any_depth = part == "**";
    if (any_depth && !last) EK_RETURN_IF_ERROR(Visit(folder, next + 1));
    EK_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                        ListFolder(folder.empty() ? "." : folder, part[0] == '.'));
    for (const std::string& name : names) {
      const std::string path = folder + name;
      if (!any_depth) {
        if (fnmatch(part.c_str(), name.c_str(), FNM_PERIOD) == 0) {
          EK_RETURN_IF_ERROR(Enter(path, next));
        }
        continue;
      }
      struct stat info;
      if (lstat(path.c_str(), &info) != 0) continue;
      if (S_ISDIR(info.st_mode)) {
        EK_RETURN_IF_ERROR(Visit(path + "/", next));
      } else if (last) {
        EK_RETURN_IF_ERROR(Enter(path, next));
      }
    }
    return absl::OkStatus();
  }

  const std::set<std::string>& matches() const { return matches_; }

 private:
  // `path` matches the pattern up to and including part `index`.
  absl::Status Enter(const std::string& path, size_t index) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return absl::OkStatus();
    if (index + 1 < parts_.size()) {
      return S_ISDIR(info.st_mode) ? Visit(path + "/", index + 1) : absl::OkStatus();
    }
    if (S_ISREG(info.st_mode)) matches_.insert(path);
    return absl::OkStatus();
  }

  std::vector<std::string> parts_;
  std::set<std::pair<std::string, size_t>> visited_;
  std::set<std::string> matches_;
};

absl::StatusOr<std::set<std::string>> MatchPattern(const std::string& pattern) {
  std::vector<std::string> parts;
  for (const absl::string_view part : absl::StrSplit(pattern, '/', absl::SkipEmpty())) {
    if (part == "**" && !parts.empty() && parts.back() == "**") continue;
    parts.emplace_back(part);
  }
  PatternWalk walk(std::move(parts));
  EK_RETURN_IF_ERROR(walk.Visit(pattern[0] == '/' ? "/" : "", 0));
  return walk.matches();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ExpandInputs(const std::vector<std::string>& inputs) {
  std::vector<std::string> paths;
  std::set<std::string> seen;
  for (const std::string& input : inputs) {
    struct stat info;
    if (stat(input.c_str(), &info) == 0) {
      if (S_ISDIR(info.st_mode)) {
        return DataError(absl::StrCat(input, ": is a folder; name its files with a pattern, e.g. '",
                                      input, input.back() == '/' ? "" : "/", "**/*.txt'"));
      }
      if (seen.insert(input).second) paths.push_back(input);
      continue;
    }
    if (!HasWildcard(input)) {
      return DataError(absl::StrCat(input, ": ", std::strerror(errno)));
    }
    EK_ASSIGN_OR_RETURN(const std::set<std::string> matches, MatchPattern(input));
    if (matches.empty()) return DataError(absl::StrCat(input, ": matches no file"));
    for (const std::string& path : matches) {
      if (seen.insert(path).second) paths.push_back(path);
    }
  }
  if (paths.empty()) return DataError("no input files are named");
  return paths;
}

}  // namespace evenkeel
