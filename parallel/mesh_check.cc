// CheckMesh and CompleteMesh: which degrees do, and which others would.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/mesh.h"
#include "runtime/base/check.h"

namespace evenkeel {
namespace {

constexpr size_t kMaxSuggestions = 3;

std::string RanksText(int64_t ranks) {
  return absl::StrCat(ranks, ranks == 1 ? " rank" : " ranks");
}

std::string BesideText(const MeshLimits& limits) {
  return limits.other_ranks == 0
             ? ""
             : absl::StrCat(" beside ", RanksText(limits.other_ranks), " of attention servers");
}

std::string MeshText(const MeshShape& shape) {
  return absl::StrCat("pp ", shape.pp, " x dp ", shape.dp, " x cp ", shape.cp, " x tp ", shape.tp);
}

// pp dp cp tp, or the largest int64_t beyond that: four degrees can exceed 64 bits.
int64_t Product(const MeshShape& shape) {
  int64_t product = 1;
  for (const int degree : {shape.pp, shape.dp, shape.cp, shape.tp}) {
    if (product > std::numeric_limits<int64_t>::max() / degree) {
      return std::numeric_limits<int64_t>::max();
    }
    product *= degree;
  }
  return product;
}

// The degrees that share `heads` evenly, or give several ranks copies of one.
bool SharesKvHeads(int64_t kv_heads, int64_t degree) {
  return kv_heads == 0 || kv_heads % degree == 0 || degree % kv_heads == 0;
}

bool StagesFit(const MeshLimits& limits, int64_t pp) {
  return pp <= limits.num_layers / limits.virtual_stages && (limits.virtual_stages == 1 || pp > 1);
}

bool TensorFits(const MeshLimits& limits, int64_t tp) {
  return limits.num_heads % tp == 0 && SharesKvHeads(limits.num_kv_heads, tp) &&
         tp <= limits.vocab_size && tp <= limits.intermediate_size;
}

// Whether the slices of the feed-forward are as equal as sharing the state asks for.
bool SlicesFit(const MeshLimits& limits, const MeshShape& shape) {
  const bool shares = limits.shares_state && int64_t{std::max(1, shape.dp)} * shape.cp > 1;
  return !shares || limits.intermediate_size % shape.tp == 0;
}

// Heads of queries, and of keys and values, that a tensor-parallel rank has.
struct HeadsPerRank {
  int64_t query = 0;
  int64_t kv = 0;
};

HeadsPerRank HeadsOf(const MeshLimits& limits, int64_t tp) {
  const int64_t kv = limits.num_kv_heads;
  return {limits.num_heads / tp, kv == 0 ? 0 : std::max<int64_t>(1, kv / tp)};
}

bool ContextFits(const MeshLimits& limits, int64_t cp, int64_t tp) {
  if (!limits.cp_over_heads) return true;
  const HeadsPerRank heads = HeadsOf(limits, tp);
  return heads.query % cp == 0 && SharesKvHeads(heads.kv, cp);
}

bool Fits(const MeshLimits& limits, const MeshShape& shape) {
  return StagesFit(limits, shape.pp) && TensorFits(limits, shape.tp) &&
         ContextFits(limits, shape.cp, shape.tp) && SlicesFit(limits, shape);
}

// Names the nearest values below and above `value` in [1, most] that `is_valid`: "nearest: 2, 4".
template <typename IsValid>
std::string Nearest(const char* axis, int64_t value, int64_t most, const IsValid& is_valid) {
  std::vector<std::string> found;
  for (int64_t v = std::min(value - 1, most); v >= 1 && found.empty(); --v) {
    if (is_valid(v)) found.push_back(absl::StrCat(axis, " ", v));
  }
  const size_t below = found.size();
  for (int64_t v = value + 1; v <= most && found.size() == below; ++v) {
    if (is_valid(v)) found.push_back(absl::StrCat(axis, " ", v));
  }
  if (found.empty()) return absl::StrCat("no ", axis, " would do");
  return absl::StrCat("nearest that would do: ", absl::StrJoin(found, ", "));
}

std::vector<int> Divisors(int64_t n) {
  std::vector<int> divisors;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    divisors.push_back(static_cast<int>(d));
    if (d * d != n) divisors.push_back(static_cast<int>(n / d));
  }
  std::sort(divisors.begin(), divisors.end());
  return divisors;
}

// How far two degrees are apart: 2 and 4 as far as 8 and 16.
double Distance(int a, int b) {
  return std::abs(std::log2(std::max(a, 1)) - std::log2(std::max(b, 1)));
}

// Lists the meshes of world_size ranks nearest to `wanted` among those that `fit`. With a dp of 0,
// any dp is as near.
template <typename Fit>
std::string NearMeshes(const MeshShape& wanted, int64_t world_size, const Fit& fit) {
  std::vector<std::tuple<double, int, int, int, int>> found;  // by distance; then fewer pp, cp, tp
  const std::vector<int> divisors = Divisors(world_size);
  for (const int pp : divisors) {
    for (const int cp : divisors) {
      if (world_size % (int64_t{pp} * cp) != 0) continue;
      for (const int tp : divisors) {
        const int64_t others = int64_t{pp} * cp * tp;
        if (world_size % others != 0) continue;
        const MeshShape shape = {pp, static_cast<int>(world_size / others), cp, tp};
        if (!fit(shape)) continue;
        const double distance = Distance(pp, wanted.pp) + Distance(cp, wanted.cp) +
                                Distance(tp, wanted.tp) +
                                (wanted.dp == 0 ? 0 : Distance(shape.dp, wanted.dp));
        // Rounded, so that ways of equal length through the logarithms are equal.
        found.emplace_back(std::round(distance * 1e6), pp, cp, tp, shape.dp);
      }
    }
  }
  const size_t shown = std::min(found.size(), kMaxSuggestions);
  std::partial_sort(found.begin(), found.begin() + static_cast<int64_t>(shown), found.end());
  if (shown == 0) return absl::StrCat("no mesh of ", RanksText(world_size), " would do");
  std::vector<std::string> texts;
  for (size_t i = 0; i < shown; ++i) {
    const auto& [distance, pp, cp, tp, dp] = found[i];
    texts.push_back(MeshText({pp, dp, cp, tp}));
  }
  return absl::StrCat("meshes of ", RanksText(world_size),
                      " near it: ", absl::StrJoin(texts, "; "));
}

void AddDegreeErrors(const MeshShape& shape, bool dp_may_be_0, std::vector<std::string>& errors) {
  const std::pair<const char*, int> axes[] = {
      {"pp", shape.pp}, {"dp", shape.dp}, {"cp", shape.cp}, {"tp", shape.tp}};
  for (const auto& [axis, degree] : axes) {
    if (degree >= 1 || (dp_may_be_0 && degree == 0 && axis == axes[1].first)) continue;
    errors.push_back(absl::StrCat(axis, " ", degree, ": a degree is at least 1"));
  }
}

void AddStageErrors(const MeshLimits& limits, int64_t pp, std::vector<std::string>& errors) {
  const int64_t chunks = limits.virtual_stages;
  const auto fits = [&](int64_t degree) { return StagesFit(limits, degree); };
  if (chunks > 1 && pp == 1) {
    errors.push_back(absl::StrCat("virtual_stages ", chunks, " needs pp > 1; with pp 1, ",
                                  "virtual_stages 1; ",
                                  Nearest("pp", pp, limits.num_layers, fits)));
  }
  if (pp > limits.num_layers / chunks) {
    const int64_t fewer = limits.num_layers / pp;  // chunks that this pp has layers for
    errors.push_back(absl::StrCat(
        "pp ", pp, " with virtual_stages ", chunks, " wants more stages than there are layers (",
        limits.num_layers, "); ", Nearest("pp", pp, limits.num_layers, fits),
        chunks > 1 && fewer >= 1 ? absl::StrCat(", or virtual_stages ", fewer) : ""));
  }
}

void AddTensorErrors(const MeshLimits& limits, const MeshShape& shape,
                     std::vector<std::string>& errors) {
  const int64_t tp = shape.tp, most = std::max(limits.num_heads, int64_t{1});
  const std::string nearest = Nearest("tp", tp, most, [&](int64_t degree) {
    MeshShape other = shape;
    other.tp = static_cast<int>(degree);
    return TensorFits(limits, degree) && SlicesFit(limits, other);
  });
  const auto add = [&](auto... parts) {
    errors.push_back(absl::StrCat("tp ", tp, parts..., "; ", nearest));
  };
  if (limits.num_heads % tp != 0) add(" does not divide the ", limits.num_heads, " heads");
  if (!SharesKvHeads(limits.num_kv_heads, tp)) {
    add(" neither divides the ", limits.num_kv_heads, " kv heads nor is a multiple of them");
  }
  if (tp > limits.vocab_size) add(" is more than the vocabulary of ", limits.vocab_size);
  if (tp > limits.intermediate_size) {
    add(" is more than the intermediate size ", limits.intermediate_size);
  } else if (!SlicesFit(limits, shape)) {
    const int64_t below = limits.intermediate_size / tp * tp;
    errors.push_back(absl::StrCat("tp ", tp, " does not divide the intermediate size ",
                                  limits.intermediate_size, ", which zero needs with dp x cp > 1; ",
                                  nearest, ", or zero 0, or an intermediate size of ", below,
                                  " or ", below + tp));
  }
}

// A tp that leaves no whole heads is told by itself: there is nothing yet to divide by cp.
void AddContextErrors(const MeshLimits& limits, int64_t cp, int64_t tp,
                      std::vector<std::string>& errors) {
  if (!limits.cp_over_heads || limits.num_heads % tp != 0) return;
  const HeadsPerRank heads = HeadsOf(limits, tp);
  const std::string nearest =
      Nearest("cp", cp, std::max(heads.query, int64_t{1}),
              [&](int64_t degree) { return ContextFits(limits, degree, tp); });
  if (heads.query % cp != 0) {
    errors.push_back(absl::StrCat("cp ", cp, " over heads does not divide the ", heads.query,
                                  " heads of a rank of tp ", tp, "; ", nearest));
  }
  if (!SharesKvHeads(heads.kv, cp)) {
    errors.push_back(absl::StrCat("cp ", cp, " over heads neither divides the ", heads.kv,
                                  " kv heads of a rank of tp ", tp, " nor is a multiple of them; ",
                                  nearest));
  }
}

absl::Status MeshError(const std::string& mesh, int64_t world_size,
                       const std::vector<std::string>& errors) {
  return absl::InvalidArgumentError(absl::StrCat("mesh ", mesh, " on ", RanksText(world_size),
                                                 ":\n  ", absl::StrJoin(errors, "\n  ")));
}

}  // namespace

absl::Status CheckMesh(const MeshShape& shape, int64_t world_size, const MeshLimits& limits) {
  EK_CHECK(world_size >= 1 && world_size <= std::numeric_limits<int>::max())
      << "a job of " << world_size;
  EK_CHECK(limits.num_heads >= 0 && limits.num_kv_heads >= 0) << "negative numbers of heads";
  std::vector<std::string> errors;
  AddDegreeErrors(shape, /*dp_may_be_0=*/false, errors);
  if (limits.virtual_stages < 1) {
    errors.push_back(absl::StrCat("virtual_stages ", limits.virtual_stages, ": at least 1"));
    return MeshError(MeshText(shape), world_size, errors);
  }
  const bool degrees_are_positive = errors.empty();
  if (shape.pp >= 1) AddStageErrors(limits, shape.pp, errors);
  if (shape.tp >= 1) AddTensorErrors(limits, shape, errors);
  if (shape.tp >= 1 && shape.cp >= 1) AddContextErrors(limits, shape.cp, shape.tp, errors);
  if (degrees_are_positive && Product(shape) != world_size) {
    // More ranks help only if nothing else is wrong.
    const bool startable = errors.empty() && Product(shape) <= std::numeric_limits<int>::max();
    errors.push_back(absl::StrCat(
        "the degrees multiply to ", Product(shape), ", but the job has ", RanksText(world_size),
        BesideText(limits),
        startable ? absl::StrCat(": start it with mpirun -np ", Product(shape) + limits.other_ranks)
                  : ""));
  }
  if (errors.empty()) return absl::OkStatus();
  errors.push_back(
      NearMeshes(shape, world_size, [&](const MeshShape& other) { return Fits(limits, other); }));
  return MeshError(MeshText(shape), world_size, errors);
}

absl::StatusOr<MeshShape> CompleteMesh(MeshShape shape, int64_t world_size,
                                       const MeshLimits& limits) {
  EK_CHECK(world_size >= 1 && world_size <= std::numeric_limits<int>::max())
      << "a job of " << world_size;
  std::vector<std::string> errors;
  AddDegreeErrors(shape, /*dp_may_be_0=*/true, errors);
  if (errors.empty()) {
    if (shape.dp != 0) return shape;
    const int64_t others = Product({shape.pp, 1, shape.cp, shape.tp});
    if (world_size % others == 0) {
      shape.dp = static_cast<int>(world_size / others);
      return shape;
    }
    AddStageErrors(limits, shape.pp, errors);
    AddTensorErrors(limits, shape, errors);
    AddContextErrors(limits, shape.cp, shape.tp, errors);
    const bool startable = errors.empty() && others <= std::numeric_limits<int>::max();
    errors.push_back(absl::StrCat(
        "dp is what is left over, but pp, cp and tp multiply to ", others,
        ", which does not divide ", world_size, BesideText(limits),
        !startable ? ""
        : limits.other_ranks == 0
            ? absl::StrCat(": start it with mpirun -np ", others, ", or a multiple")
            : absl::StrCat(": start it with mpirun -np ", others + limits.other_ranks,
                           ", or a multiple of ", others, " and ", limits.other_ranks)));
  }
  errors.push_back(
      NearMeshes(shape, world_size, [&](const MeshShape& other) { return Fits(limits, other); }));
  return MeshError(MeshText(shape), world_size, errors);
}

}  // namespace evenkeel
