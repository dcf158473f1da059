#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <iterator>
#include <limits>
#include <sstream>
#include <string>
#include <tuple>

#include "gmock/gmock.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

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
      EXPECT_EQ(RankOfCoord(shape, c), rank);
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

constexpr MeshLimits kModel = {.num_layers = 12,
                               .num_heads = 8,
                               .num_kv_heads = 2,
                               .vocab_size = 256,
                               .intermediate_size = 48};

constexpr MeshLimits kSharing = {.num_layers = 12,
                                 .num_heads = 8,
                                 .num_kv_heads = 2,
                                 .vocab_size = 256,
                                 .intermediate_size = 44,
                                 .shares_state = true};

TEST(Mesh, FollowsTheRulesByTable) {
  const struct {
    MeshShape shape;  // pp, dp, cp, tp
    MeshLimits limits;
    bool ok;
  } cases[] = {
      {{1, 1, 1, 1}, {}, true},
      {{12, 1, 1, 1}, kModel, true},
      {{13, 1, 1, 1}, kModel, false},
      {{1, 5, 1, 1}, kModel, true},
      {{1, 1, 5, 1}, kModel, true},
      {{1, 1, 1, 2}, kModel, true},
      {{1, 1, 1, 4}, kModel, true},  // kv heads repeated
      {{1, 1, 1, 8}, kModel, true},
      {{1, 1, 1, 16}, kModel, false},
      {{1, 1, 1, 3}, kModel, false},
      {{1, 1, 1, 3},
       {.num_heads = 12, .num_kv_heads = 4, .vocab_size = 9, .intermediate_size = 9},
       false},
      {{1, 1, 1, 3},
       {.num_heads = 12, .num_kv_heads = 0, .vocab_size = 9, .intermediate_size = 9},
       true},
      {{1, 1, 1, 4}, {.num_heads = 4, .vocab_size = 3, .intermediate_size = 9}, false},
      {{1, 1, 1, 4}, {.num_heads = 4, .vocab_size = 9, .intermediate_size = 3}, false},
      {{3, 1, 1, 1}, {.num_layers = 12, .virtual_stages = 4}, true},
      {{4, 1, 1, 1}, {.num_layers = 12, .virtual_stages = 4}, false},
      {{1, 1, 1, 1}, {.num_layers = 12, .virtual_stages = 2}, false},
      {{1, 1, 1, 1}, {.virtual_stages = 0}, false},
      // Over heads: 8 / tp heads and max(1, 2 / tp) kv heads are shared by cp.
      {{1, 1, 8, 1}, {.num_heads = 8, .num_kv_heads = 2, .cp_over_heads = true}, true},
      {{1, 1, 3, 1}, {.num_heads = 8, .num_kv_heads = 2, .cp_over_heads = true}, false},
      {{1, 1, 3, 1}, {.num_heads = 12, .num_kv_heads = 2, .cp_over_heads = true}, false},
      {{1, 1, 4, 2},
       {.num_heads = 8,
        .num_kv_heads = 2,
        .vocab_size = 9,
        .intermediate_size = 9,
        .cp_over_heads = true},
       true},
      {{1, 1, 8, 2},
       {.num_heads = 8,
        .num_kv_heads = 2,
        .vocab_size = 9,
        .intermediate_size = 9,
        .cp_over_heads = true},
       false},
      // Shared state: equal slices, if there is anybody to share with.
      {{1, 2, 1, 4}, kSharing, true},
      {{1, 2, 1, 8}, kSharing, false},
      {{1, 1, 2, 8}, kSharing, false},
      {{2, 1, 1, 8}, kSharing, true},
  };
  for (size_t c = 0; c < std::size(cases); ++c) {
    const int64_t world = cases[c].shape.num_ranks();
    const absl::Status status = CheckMesh(cases[c].shape, world, cases[c].limits);
    EXPECT_EQ(status.ok(), cases[c].ok) << "case " << c << ": " << status;
    // The product is checked, whatever else is.
    EXPECT_FALSE(CheckMesh(cases[c].shape, world + 1, cases[c].limits).ok()) << "case " << c;
  }
}

TEST(Mesh, OneErrorSaysAllThatIsWrongAndWhatWouldDo) {
  const absl::Status product = CheckMesh({2, 3, 1, 4}, 16, kModel);
  EXPECT_EQ(product.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(product.message(),
            "mesh pp 2 x dp 3 x cp 1 x tp 4 on 16 ranks:\n"
            "  the degrees multiply to 24, but the job has 16 ranks: start it with mpirun -np 24\n"
            "  meshes of 16 ranks near it: pp 2 x dp 2 x cp 1 x tp 4; pp 1 x dp 4 x cp 1 x tp 4; "
            "pp 2 x dp 4 x cp 1 x tp 2");
  EXPECT_EQ(CheckMesh({8, 1, 1, 3}, 24,
                      {.num_layers = 12,
                       .num_heads = 8,
                       .num_kv_heads = 2,
                       .vocab_size = 2,
                       .intermediate_size = 48,
                       .virtual_stages = 3})
                .message(),
            "mesh pp 8 x dp 1 x cp 1 x tp 3 on 24 ranks:\n"
            "  pp 8 with virtual_stages 3 wants more stages than there are layers (12); nearest "
            "that would do: pp 4, or virtual_stages 1\n"
            "  tp 3 does not divide the 8 heads; nearest that would do: tp 2\n"
            "  tp 3 neither divides the 2 kv heads nor is a multiple of them; nearest that would "
            "do: tp 2\n"
            "  tp 3 is more than the vocabulary of 2; nearest that would do: tp 2\n"
            "  meshes of 24 ranks near it: pp 4 x dp 3 x cp 1 x tp 2; pp 4 x dp 1 x cp 3 x tp 2; "
            "pp 3 x dp 4 x cp 1 x tp 2");
  const MeshLimits heads = {.num_heads = 8, .num_kv_heads = 8, .cp_over_heads = true};
  EXPECT_EQ(CheckMesh({1, 1, 3, 1}, 3, heads).message(),
            "mesh pp 1 x dp 1 x cp 3 x tp 1 on 3 ranks:\n"
            "  cp 3 over heads does not divide the 8 heads of a rank of tp 1; nearest that would "
            "do: cp 2, cp 4\n"
            "  cp 3 over heads neither divides the 8 kv heads of a rank of tp 1 nor is a multiple "
            "of them; nearest that would do: cp 2, cp 4\n"
            "  meshes of 3 ranks near it: pp 1 x dp 3 x cp 1 x tp 1");
  EXPECT_EQ(CheckMesh({1, 2, 1, 8}, 16, kSharing).message(),
            "mesh pp 1 x dp 2 x cp 1 x tp 8 on 16 ranks:\n"
            "  tp 8 does not divide the intermediate size 44, which zero needs with dp x cp > 1; "
            "nearest that would do: tp 4, or zero 0, or an intermediate size of 40 or 48\n"
            "  meshes of 16 ranks near it: pp 1 x dp 4 x cp 1 x tp 4; pp 1 x dp 2 x cp 2 x tp 4; "
            "pp 2 x dp 2 x cp 1 x tp 4");
  EXPECT_THAT(
      std::string(CheckMesh({1, 1, 1, 1}, 1, {.num_layers = 4, .virtual_stages = 2}).message()),
      HasSubstr("virtual_stages 2 needs pp > 1; with pp 1, virtual_stages 1; nearest that "
                "would do: pp 2\n  no mesh of 1 rank would do"));
}

TEST(Mesh, DegreesBeyondReasonAreNoAccident) {
  const std::string none(CheckMesh({0, -2, 1, 1}, 4, kModel).message());
  EXPECT_THAT(none, HasSubstr("pp 0: a degree is at least 1\n  dp -2: a degree is at least 1\n"));
  EXPECT_THAT(none, HasSubstr("near it: pp 1 x dp 4"));
  // 2^64 and 2^31 to the fourth wrap around in 64 bits.
  EXPECT_FALSE(CheckMesh({65536, 65536, 65536, 65536}, 1, {}).ok());
  const int most = std::numeric_limits<int>::max();
  const std::string huge(CheckMesh({most, most, most, most}, 1, kModel).message());
  EXPECT_THAT(huge, HasSubstr("nearest that would do: pp 12\n"));
  EXPECT_THAT(huge, Not(HasSubstr("mpirun")));
}

// What the error proposes holds.
TEST(Mesh, ProposedMeshesAreValid) {
  for (const MeshLimits& limits : {kModel, kSharing}) {
    for (int world = 1; world <= 24; ++world) {
      for (const MeshShape wanted : {MeshShape{5, 1, 1, 1}, MeshShape{1, 1, 7, 3},
                                     MeshShape{2, 9, 2, 16}, MeshShape{1, 2, 1, 8}}) {
        const std::string message(CheckMesh(wanted, world, limits).message());
        if (message.empty()) continue;  // valid itself
        const size_t at = message.find("near it: ");
        ASSERT_NE(at, std::string::npos) << message;
        std::istringstream text(message.substr(at + 9));
        std::string pp, dp, cp, tp, x;
        MeshShape mesh;
        int count = 0;
        while (text >> pp >> mesh.pp >> x >> dp >> mesh.dp >> x >> cp >> mesh.cp >> x >> tp >>
               mesh.tp) {
          EXPECT_TRUE(CheckMesh(mesh, world, limits).ok()) << CheckMesh(mesh, world, limits);
          text.ignore(1);
          ++count;
        }
        EXPECT_GE(count, 1);
      }
    }
  }
}

TEST(Mesh, DataParallelRanksAreWhatIsLeftOver) {
  const auto dp = [](MeshShape shape, int64_t world) {
    const auto mesh = CompleteMesh(shape, world, kModel);
    return mesh.ok() ? mesh->dp : -1;
  };
  EXPECT_EQ(dp({2, 0, 1, 4}, 24), 3);
  EXPECT_EQ(dp({1, 0, 1, 1}, 1), 1);
  EXPECT_EQ(dp({1, 7, 1, 1}, 24), 7);  // CheckMesh will tell
  EXPECT_EQ(dp({1, 0, 1, 0}, 24), -1);
  EXPECT_EQ(dp({1, -1, 1, 1}, 24), -1);
  EXPECT_EQ(dp({65536, 0, 65536, 65536}, 1), -1);
  EXPECT_EQ(CompleteMesh({1, 0, 1, 2}, 1, kModel).status().message(),
            "mesh pp 1 x dp 0 x cp 1 x tp 2 on 1 rank:\n"
            "  dp is what is left over, but pp, cp and tp multiply to 2, which does not divide 1: "
            "start it with mpirun -np 2, or a multiple\n"
            "  meshes of 1 rank near it: pp 1 x dp 1 x cp 1 x tp 1");
  // Attention servers are started too.
  MeshLimits with_servers = kModel;
  with_servers.other_ranks = 2;
  EXPECT_THAT(
      std::string(CompleteMesh({1, 0, 1, 2}, 3, with_servers).status().message()),
      HasSubstr("which does not divide 3 beside 2 ranks of attention servers: start it with "
                "mpirun -np 4, or a multiple of 2 and 2\n"));
  EXPECT_THAT(std::string(CheckMesh({1, 4, 1, 2}, 6, with_servers).message()),
              HasSubstr("multiply to 8, but the job has 6 ranks beside 2 ranks of attention "
                        "servers: start it with mpirun -np 10\n"));
  // What is proposed has to suit the model: no tp of 3 or 6.
  const std::string six(CompleteMesh({1, 0, 1, 4}, 6, kModel).status().message());
  EXPECT_THAT(six, HasSubstr("near it: pp 1 x dp 3 x cp 1 x tp 2;"));
  EXPECT_EQ(CompleteMesh({2, 0, 1, 3}, 16, kModel).status().message(),
            "mesh pp 2 x dp 0 x cp 1 x tp 3 on 16 ranks:\n"
            "  tp 3 does not divide the 8 heads; nearest that would do: tp 2, tp 4\n"
            "  tp 3 neither divides the 2 kv heads nor is a multiple of them; nearest that would "
            "do: tp 2, tp 4\n"
            "  dp is what is left over, but pp, cp and tp multiply to 6, which does not divide 16\n"
            "  meshes of 16 ranks near it: pp 2 x dp 2 x cp 1 x tp 4; pp 2 x dp 4 x cp 1 x tp 2; "
            "pp 1 x dp 4 x cp 1 x tp 4");
}

}  // namespace
}  // namespace evenkeel
