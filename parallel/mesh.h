// The mesh of ranks: who sits where on the axes pp, dp, cp, tp (tp fastest).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
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

// The inverse: the rank at `coord`, which lies inside `shape`.
int RankOfCoord(const MeshShape& shape, const MeshCoord& coord);

// What of a model, and of how it is run, limits the degrees.
struct MeshLimits {
  int64_t num_layers = 1;
  int64_t num_heads = 1;
  int64_t num_kv_heads = 0;  // 0 if no layer has any
  int64_t vocab_size = 1;
  int64_t intermediate_size = 1;
  int64_t virtual_stages = 1;  // model chunks a pipeline rank has
  bool cp_over_heads = false;  // context parallelism trades tokens for heads (Ulysses)
  bool shares_state = false;   // ranks of dp and cp share what they hold alike (ZeRO)
  int64_t other_ranks = 0;     // attention servers, which mpirun starts beside the mesh's ranks
};

// Checks that
//   pp dp cp tp = world_size,
//   every stage has a layer: pp virtual_stages <= num_layers, and virtual_stages > 1 needs pp > 1,
//   tp divides the heads, divides the kv heads or is a multiple of them (which are then repeated),
//     and is at most the vocabulary and the intermediate size,
//   with cp_over_heads, cp does to the heads of a tensor-parallel rank what tp does to all,
//   with shares_state and dp cp > 1, tp divides the intermediate size: what is shared is equally
//     large on all tensor-parallel ranks (the vocabulary is padded).
// The error names all degrees and the world size, everything that is wrong, for each the nearest
// degrees that would do, and whole meshes near this one.
absl::Status CheckMesh(const MeshShape& shape, int64_t world_size, const MeshLimits& limits);

// Returns `shape` with dp filled in if it is 0: what the other degrees leave of world_size. Fails,
// with meshes near this one that keep to `limits`, if they do not divide it. Other values of dp
// stay as they are; whether the mesh keeps to the limits is for CheckMesh.
absl::StatusOr<MeshShape> CompleteMesh(MeshShape shape, int64_t world_size,
                                       const MeshLimits& limits);

}  // namespace evenkeel
