// The mesh of ranks: who sits where on the axes pp, dp, cp, tp (tp fastest).
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace evenkeel {

struct MeshShape {
  int pp = 1;
  int dp = 1;
  int cp = 1;
  int tp = 1;

  int64_t num_ranks() const { return int64_t{1} * pp * dp * cp * tp; }
};

// Coordinates of one rank. The tp axis varies fastest, then cp, dp, pp.
struct MeshCoord {
  int pp = 0;
  int dp = 0;
  int cp = 0;
  int tp = 0;
};

// Returns the coordinates of `rank`. Fails, naming all degrees, if they do not multiply to
// `world_size`.
absl::StatusOr<MeshCoord> CoordOfRank(const MeshShape& shape, int world_size, int rank);

}  // namespace evenkeel
