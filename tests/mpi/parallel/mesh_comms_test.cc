// Which ranks share an axis, and whom a pipeline link leads to: for every mesh over the ranks there
// are, beside a search through all coordinates.
#include "parallel/mesh_comms.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

class MeshCommsTest : public testing::Test {
 protected:
  MeshCommsTest() : mpi_(*MpiRuntime::Create({.timeout_s = 20})), comm_(mpi_.world()) {}

  // Ranks whose coordinates `is_member` accepts, ascending: the order on every axis.
  std::vector<int64_t> Members(const MeshShape& shape,
                               const std::function<bool(const MeshCoord&)>& is_member) {
    std::vector<int64_t> members;
    for (int rank = 0; rank < comm_.size(); ++rank) {
      if (is_member(*CoordOfRank(shape, comm_.size(), rank))) members.push_back(rank);
    }
    return members;
  }
  // Null exactly for one rank alone; otherwise those ranks, in that order.
  void ExpectAxis(AxisComm* axis, const std::vector<int64_t>& members, const char* name) {
    SCOPED_TRACE(name);
    ASSERT_EQ(axis == nullptr, members.size() <= 1);
    if (axis == nullptr) return;
    ASSERT_EQ(axis->size(), static_cast<int>(members.size()));
    ASSERT_EQ(members[static_cast<size_t>(axis->rank())], comm_.rank());
    int64_t me = comm_.rank();
    std::vector<int64_t> found(members.size(), -1);
    const std::vector<int64_t> rows(members.size(), 1);
    axis->AllGather(TensorView(&me, DType::kI64, {1}),
                    TensorView(found.data(), DType::kI64, {static_cast<int64_t>(found.size())}),
                    rows, "who is here");
    EXPECT_EQ(found, members);
  }

  MpiRuntime mpi_;
  Communicator& comm_;
};

// All meshes over `ranks` ranks.
std::vector<MeshShape> Meshes(int ranks) {
  std::vector<MeshShape> meshes;
  for (int pp = 1; pp <= ranks; ++pp) {
    for (int dp = 1; pp * dp <= ranks; ++dp) {
      for (int cp = 1; pp * dp * cp <= ranks; ++cp) {
        const int tp = ranks / (pp * dp * cp);
        if (pp * dp * cp * tp == ranks) meshes.push_back({pp, dp, cp, tp});
      }
    }
  }
  return meshes;
}

std::string Describe(const MeshShape& shape) {
  return (testing::Message() << "pp " << shape.pp << ", dp " << shape.dp << ", cp " << shape.cp
                             << ", tp " << shape.tp)
      .GetString();
}

TEST_F(MeshCommsTest, AxesJoinTheRightRanks) {
  for (const MeshShape& shape : Meshes(comm_.size())) {
    SCOPED_TRACE(Describe(shape));
    for (int copies = 1; copies <= shape.tp; ++copies) {
      if (shape.tp % copies != 0) continue;
      MeshCommsOptions options;
      options.shape = shape;
      options.key_value_copies = copies;
      options.ties_stages = shape.pp > 1 && copies % 2 == 1;
      const auto comms = MeshComms::Create(comm_, options);
      ASSERT_TRUE(comms.ok()) << comms.status();
      const MeshCoord at = (*comms)->coord();
      const ModelAxes& axes = (*comms)->axes();
      using Coord = const MeshCoord&;
      ExpectAxis(
          axes.tp,
          Members(shape, [&](Coord c) { return c.pp == at.pp && c.dp == at.dp && c.cp == at.cp; }),
          "tp");
      ExpectAxis(axes.key_value,
                 Members(shape,
                         [&](Coord c) {
                           return c.pp == at.pp && c.dp == at.dp && c.cp == at.cp &&
                                  c.tp / copies == at.tp / copies;
                         }),
                 "key/value");
      ExpectAxis(
          axes.cp,
          Members(shape, [&](Coord c) { return c.pp == at.pp && c.dp == at.dp && c.tp == at.tp; }),
          "cp");
      ExpectAxis(axes.data, Members(shape, [&](Coord c) { return c.pp == at.pp && c.tp == at.tp; }),
                 "data");
      ExpectAxis(
          axes.stages,
          Members(shape, [&](Coord c) { return c.dp == at.dp && c.cp == at.cp && c.tp == at.tp; }),
          "pp");
      const auto is_end = [&](Coord c) { return c.pp == 0 || c.pp == shape.pp - 1; };
      if (options.ties_stages && is_end(at)) {
        ExpectAxis(axes.tied,
                   Members(shape,
                           [&](Coord c) {
                             return is_end(c) && c.dp == at.dp && c.cp == at.cp && c.tp == at.tp;
                           }),
                   "tied");
      } else {
        EXPECT_EQ(axes.tied, nullptr);
      }
      EXPECT_TRUE((*comms)->log().status().ok()) << (*comms)->log().status();
    }
  }
}

// Everyone sends its rank both ways, all links at once.
TEST_F(MeshCommsTest, LinksLeadToTheNeighbouringStages) {
  for (const MeshShape& shape : Meshes(comm_.size())) {
    for (const bool is_interleaved : {false, true}) {
      if (is_interleaved && shape.pp == 1) continue;
      SCOPED_TRACE(Describe(shape) + (is_interleaved ? ", interleaved" : ""));
      MeshCommsOptions options;
      options.shape = shape;
      options.is_interleaved = is_interleaved;
      const auto comms = MeshComms::Create(comm_, options);
      ASSERT_TRUE(comms.ok()) << comms.status();
      const MeshCoord at = (*comms)->coord();
      const PipelineLinks& links = (*comms)->links();
      const bool has_next = is_interleaved || at.pp + 1 < shape.pp;
      const bool has_previous = is_interleaved || at.pp > 0;
      ASSERT_EQ(links.forward_to_next != nullptr, has_next);
      ASSERT_EQ(links.backward_from_next != nullptr, has_next);
      ASSERT_EQ(links.forward_from_previous != nullptr, has_previous);
      ASSERT_EQ(links.backward_to_previous != nullptr, has_previous);
      const auto rank_of_stage = [&](int stage) {
        MeshCoord coord = at;
        coord.pp = (stage + shape.pp) % shape.pp;
        return RankOfCoord(shape, coord);
      };
      int64_t me = comm_.rank(), previous = -1, next = -1;
      const TensorView mine(&me, DType::kI64, {1});
      std::vector<Work> works;
      if (has_next) {
        const SendTo send{1, mine};
        works.push_back(links.forward_to_next->SendRecvAsync({&send, 1}, {}, "activations"));
        const ReceiveFrom receive{1, TensorView(&next, DType::kI64, {1})};
        works.push_back(links.backward_from_next->SendRecvAsync({}, {&receive, 1}, "gradients"));
      }
      if (has_previous) {
        const ReceiveFrom receive{0, TensorView(&previous, DType::kI64, {1})};
        works.push_back(
            links.forward_from_previous->SendRecvAsync({}, {&receive, 1}, "activations"));
        const SendTo send{0, mine};
        works.push_back(links.backward_to_previous->SendRecvAsync({&send, 1}, {}, "gradients"));
      }
      for (Work& work : works) ASSERT_TRUE(work.Wait().ok());
      EXPECT_EQ(previous, has_previous ? rank_of_stage(at.pp - 1) : -1);
      EXPECT_EQ(next, has_next ? rank_of_stage(at.pp + 1) : -1);
      EXPECT_TRUE((*comms)->log().status().ok()) << (*comms)->log().status();
    }
  }
}

TEST_F(MeshCommsTest, AMeshOfAnotherSizeIsRefused) {
  MeshCommsOptions options;
  options.shape = {comm_.size(), 2, 1, 1};
  const auto comms = MeshComms::Create(comm_, options);
  ASSERT_FALSE(comms.ok());
  EXPECT_NE(std::string(comms.status().message()).find("dp 2"), std::string::npos);
}

}  // namespace
}  // namespace evenkeel
