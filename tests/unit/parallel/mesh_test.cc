#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>

namespace evenkeel {
namespace {

TEST(Mesh, PlacesRanksByTable) {
  const struct {
    MeshShape shape;
    int rank;
    MeshCoord expected;  // pp, dp, cp, tp
  } cases[] = {
      {{1, 1, 1, 1}, 0, {0, 0, 0, 0}},   {{1, 4, 1, 1}, 3, {0, 3, 0, 0}},
      {{2, 1, 1, 2}, 1, {0, 0, 0, 1}},   {{2, 1, 1, 2}, 2, {1, 0, 0, 0}},
      {{2, 3, 1, 1}, 4, {1, 1, 0, 0}},   {{1, 2, 3, 1}, 5, {0, 1, 2, 0}},
      {{2, 3, 5, 7}, 0, {0, 0, 0, 0}},   {{2, 3, 5, 7}, 6, {0, 0, 0, 6}},
      {{2, 3, 5, 7}, 7, {0, 0, 1, 0}},   {{2, 3, 5, 7}, 35, {0, 1, 0, 0}},
      {{2, 3, 5, 7}, 105, {1, 0, 0, 0}}, {{2, 3, 5, 7}, 209, {1, 2, 4, 6}},
  };
  for (const auto& c : cases) {
    const auto coord = CoordOfRank(c.shape, static_cast<int>(c.shape.num_ranks()), c.rank);
    ASSERT_TRUE(coord.ok()) << coord.status();
    EXPECT_EQ(std::tie(coord->pp, coord->dp, coord->cp, coord->tp),
              std::tie(c.expected.pp, c.expected.dp, c.expected.cp, c.expected.tp))
        << "rank " << c.rank;
  }
}

// The coordinates count up like the digits of a number whose last digit is tp.
TEST(Mesh, CoordinatesCountUpWithTheRank) {
  for (const MeshShape shape :
       {MeshShape{2, 2, 2, 2}, MeshShape{3, 1, 2, 4}, MeshShape{1, 5, 3, 1}}) {
    const int n = static_cast<int>(shape.num_ranks());
    for (int rank = 0; rank < n; ++rank) {
      const MeshCoord c = *CoordOfRank(shape, n, rank);
      EXPECT_EQ(((c.pp * shape.dp + c.dp) * shape.cp + c.cp) * shape.tp + c.tp, rank);
      EXPECT_LT(c.dp, shape.dp);
      EXPECT_LT(c.cp, shape.cp);
      EXPECT_LT(c.tp, shape.tp);
    }
  }
}

TEST(Mesh, RefusesDegreesThatDoNotMultiplyToTheWorld) {
  const auto coord = CoordOfRank({2, 3, 1, 4}, 16, 0);
  EXPECT_EQ(coord.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(coord.status().message(),
            "pp 2 x dp 3 x cp 1 x tp 4 is 24 ranks, but the job has 16: start it with mpirun -np "
            "24, or change a degree");
  EXPECT_FALSE(CoordOfRank({0, 1, 1, 1}, 0, 0).ok());
  EXPECT_FALSE(CoordOfRank({-1, -1, 1, 1}, 1, 0).ok());
  // A product beyond 32 bits is no accident of wrapping around.
  EXPECT_FALSE(CoordOfRank({65536, 65536, 1, 1}, 0, 0).ok());
}

TEST(Mesh, RefusesRanksOutsideTheWorld) {
  EXPECT_EQ(CoordOfRank({1, 2, 1, 1}, 2, 2).status().message(), "rank 2 of 2");
  EXPECT_EQ(CoordOfRank({1, 2, 1, 1}, 2, -1).status().code(), absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace evenkeel
