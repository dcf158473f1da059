#include "parallel/mesh.h"

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"

namespace evenkeel {

absl::StatusOr<MeshCoord> CoordOfRank(const MeshShape& shape, int world_size, int rank) {
  if (shape.pp < 1 || shape.dp < 1 || shape.cp < 1 || shape.tp < 1 ||
      shape.num_ranks() != world_size) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pp %d x dp %d x cp %d x tp %d is %d ranks, but the job has %d: start it with mpirun -np "
        "%d, "
        "or change a degree",
        shape.pp, shape.dp, shape.cp, shape.tp, shape.num_ranks(), world_size, shape.num_ranks()));
  }
  if (rank < 0 || rank >= world_size) {
    return absl::OutOfRangeError(absl::StrFormat("rank %d of %d", rank, world_size));
  }
  MeshCoord coord;
  coord.tp = rank % shape.tp;
  coord.cp = rank / shape.tp % shape.cp;
  coord.dp = rank / (shape.tp * shape.cp) % shape.dp;
  coord.pp = rank / (shape.tp * shape.cp * shape.dp);
  return coord;
}

int RankOfCoord(const MeshShape& shape, const MeshCoord& coord) {
  const auto inside = [](int index, int degree) { return index >= 0 && index < degree; };
  EK_CHECK(inside(coord.pp, shape.pp) && inside(coord.dp, shape.dp) && inside(coord.cp, shape.cp) &&
           inside(coord.tp, shape.tp))
      << "coordinates " << coord.pp << " " << coord.dp << " " << coord.cp << " " << coord.tp;
  return ((coord.pp * shape.dp + coord.dp) * shape.cp + coord.cp) * shape.tp + coord.tp;
}

}  // namespace evenkeel
