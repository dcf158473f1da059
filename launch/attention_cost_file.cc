#include "launch/attention_cost_file.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/config_json.h"
#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/checkpoint/json_file.h"

namespace evenkeel {
namespace {

using Json = nlohmann::json;

constexpr char kFormat[] = "evenkeel attention cost 1";
constexpr char kRemedy[] = "; measure it again: evenkeel bench attention --json FILE";
constexpr int64_t kMaxLength = int64_t{1} << 40;

using Lengths = std::pair<int64_t, int64_t>;  // of queries and of keys

absl::Status Invalid(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

void Require(JsonReader& reader, const char* key) {
  if (reader.Find(key) == nullptr) reader.Error(key, "is missing");
}

// A time or a rate: positive and finite.
void Positive(JsonReader& reader, const char* key, double* value) {
  Require(reader, key);
  reader.Float(key, value, 1e-300, 1e300);
}

absl::StatusOr<AttentionCostPoint> ReadPoint(const Json& json, const std::string& path) {
  AttentionCostPoint point;
  JsonReader reader(json, path);
  reader.Int("q_len", &point.q_len, 1, kMaxLength, /*required=*/true);
  reader.Int("kv_len", &point.kv_len, 1, kMaxLength, /*required=*/true);
  reader.Int("tasks", &point.tasks, 1, kMaxLength, /*required=*/true);
  Positive(reader, "forward_s_per_pair", &point.forward_s_per_pair);
  Positive(reader, "backward_s_per_pair", &point.backward_s_per_pair);
  Positive(reader, "both_s_per_pair", &point.both_s_per_pair);
  EK_RETURN_IF_ERROR(reader.status());
  if (point.q_len > point.kv_len) {
    return Invalid(path, absl::StrCat(point.q_len, " queries on ", point.kv_len,
                                      " keys: a task has its queries' own keys at least"));
  }
  return point;
}

// The lists of lengths that `points` are all the causal pairs of.
struct Axes {
  std::vector<int64_t> q_lens;
  std::vector<int64_t> kv_lens;
};

absl::StatusOr<Axes> AxesOf(const std::vector<AttentionCostPoint>& points,
                            const std::string& path) {
  if (points.empty()) return Invalid(path, "points: is empty");
  std::set<int64_t> q_lens, kv_lens;
  std::set<Lengths> measured;
  for (const AttentionCostPoint& point : points) {
    q_lens.insert(point.q_len);
    kv_lens.insert(point.kv_len);
    if (!measured.insert({point.q_len, point.kv_len}).second) {
      return Invalid(path, absl::StrCat("points: ", point.q_len, " queries on ", point.kv_len,
                                        " keys are there twice"));
    }
  }
  q_lens.insert(kv_lens.begin(), kv_lens.end());
  for (const int64_t q_len : q_lens) {
    for (const int64_t kv_len : kv_lens) {
      if (q_len <= kv_len && measured.count({q_len, kv_len}) == 0) {
        return Invalid(
            path, absl::StrCat("points: ", q_len, " queries on ", kv_len, " keys are missing"));
      }
    }
  }
  return Axes{{q_lens.begin(), q_lens.end()}, {kv_lens.begin(), kv_lens.end()}};
}

absl::StatusOr<AttentionCostFile> Read(const std::string& path) {
  EK_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  AttentionCostFile file;
  JsonReader reader(json, path);
  std::string format;
  reader.String("format", &format);
  if (format != kFormat) {
    reader.Error("format", absl::StrCat("is '", format, "', not '", kFormat, "'"));
  }
  reader.String("program", &file.program);
  reader.String("date", &file.date);
  Require(reader, "device");
  reader.String("device", &file.device);
  reader.Int("threads", &file.threads, 0, kMaxLength, /*required=*/true);
  Require(reader, "dtype");
  reader.String("dtype", &file.dtype);
  reader.Int("heads", &file.heads, 1, 1 << 20, /*required=*/true);
  reader.Int("kv_heads", &file.kv_heads, 1, 1 << 20, /*required=*/true);
  reader.Int("head_size", &file.head_size, 1, 1 << 20, /*required=*/true);
  reader.Int("runs", &file.runs, 1, kMaxLength, /*required=*/true);
  Positive(reader, "matrix_product_flops", &file.matrix_product_flops);
  const Json* points = reader.Find("points");
  if (points == nullptr || !points->is_array()) reader.Error("points", "is not a list");
  EK_RETURN_IF_ERROR(reader.status());
  for (size_t i = 0; i < points->size(); ++i) {
    EK_ASSIGN_OR_RETURN(const AttentionCostPoint point,
                        ReadPoint((*points)[i], absl::StrCat(path, ": points[", i, "]")));
    file.points.push_back(point);
  }
  EK_RETURN_IF_ERROR(AxesOf(file.points, path).status());
  return file;
}

// The whole rectangle [q_lens, kv_lens] that AttentionCost::Grid wants. No task has more queries
// than keys, but the grid interpolates between such cells and measured ones for documents whose
// length is between two that were measured. What continues the plane through the three measured
// neighbours makes the cost linear from one document's length to the next. Elsewhere, and where
// that plane is not above zero, the nearest task with as many queries serves.
std::vector<double> Rectangle(const Axes& axes, const std::map<Lengths, double>& measured) {
  std::vector<double> cells;
  for (size_t i = 0; i < axes.q_lens.size(); ++i) {
    const int64_t q_len = axes.q_lens[i];
    for (size_t j = 0; j < axes.kv_lens.size(); ++j) {
      const int64_t kv_len = axes.kv_lens[j];
      if (const auto found = measured.find({q_len, kv_len}); found != measured.end()) {
        cells.push_back(found->second);
        continue;
      }
      double cell = measured.lower_bound({q_len, kv_len})->second;
      if (i > 0 && j + 1 < axes.kv_lens.size()) {
        const int64_t shorter = axes.q_lens[i - 1], longer = axes.kv_lens[j + 1];
        const auto above = measured.find({shorter, kv_len});
        const auto right = measured.find({q_len, longer});
        if (above != measured.end() && right != measured.end()) {
          const double plane = above->second + right->second - measured.at({shorter, longer});
          if (plane > 0) cell = plane;
        }
      }
      cells.push_back(cell);
    }
  }
  return cells;
}

}  // namespace

Json ToJson(const AttentionCostFile& file) {
  Json points = Json::array();
  for (const AttentionCostPoint& point : file.points) {
    points.push_back({{"q_len", point.q_len},
                      {"kv_len", point.kv_len},
                      {"tasks", point.tasks},
                      {"forward_s_per_pair", point.forward_s_per_pair},
                      {"backward_s_per_pair", point.backward_s_per_pair},
                      {"both_s_per_pair", point.both_s_per_pair}});
  }
  return {{"format", kFormat},
          {"program", file.program},
          {"date", file.date},
          {"device", file.device},
          {"threads", file.threads},
          {"dtype", file.dtype},
          {"heads", file.heads},
          {"kv_heads", file.kv_heads},
          {"head_size", file.head_size},
          {"runs", file.runs},
          {"matrix_product_flops", file.matrix_product_flops},
          {"points", std::move(points)}};
}

absl::StatusOr<AttentionCostFile> ReadAttentionCostFile(const std::string& path) {
  absl::StatusOr<AttentionCostFile> file = Read(path);
  if (file.ok()) return file;
  return WithExitCode(absl::InvalidArgumentError(absl::StrCat(file.status().message(), kRemedy)),
                      ExitCode::kUsage);
}

absl::StatusOr<AttentionCosts> CostsOf(const AttentionCostFile& file, int64_t heads,
                                       int64_t head_size) {
  EK_ASSIGN_OR_RETURN(const Axes axes, AxesOf(file.points, file.device));
  const double scale =
      static_cast<double>(heads * head_size) / static_cast<double>(file.heads * file.head_size);
  std::map<Lengths, double> forward, backward;
  for (const AttentionCostPoint& point : file.points) {
    forward[{point.q_len, point.kv_len}] = scale * point.forward_s_per_pair;
    backward[{point.q_len, point.kv_len}] = scale * point.backward_s_per_pair;
  }
  AttentionCosts costs;
  EK_ASSIGN_OR_RETURN(costs.forward,
                      AttentionCost::Grid(axes.q_lens, axes.kv_lens, Rectangle(axes, forward)));
  EK_ASSIGN_OR_RETURN(costs.backward,
                      AttentionCost::Grid(axes.q_lens, axes.kv_lens, Rectangle(axes, backward)));
  return costs;
}

}  // namespace evenkeel
