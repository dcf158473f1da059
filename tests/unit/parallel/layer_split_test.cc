#include "parallel/layer_split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "gmock/gmock.h"

namespace evenkeel {
namespace {

using ::testing::ElementsAre;

using Layers = std::vector<int64_t>;

TEST(LayerSplit, EvenSplitsByTable) {
  const struct {
    int64_t layers;
    int stages;
    Layers expected;
  } cases[] = {
      {1, 1, {0, 1}},
      {8, 4, {0, 2, 4, 6, 8}},
      {9, 4, {0, 2, 5, 7, 9}},    // 2 3 2 2
      {10, 4, {0, 2, 5, 8, 10}},  // 2 3 3 2
      {11, 4, {0, 3, 6, 9, 11}},  // 3 3 3 2: the head's stage is the last to get one
      {7, 2, {0, 4, 7}},
      {6, 5, {0, 1, 2, 4, 5, 6}},
  };
  for (const auto& c : cases) {
    const auto first = SplitLayers(c.layers, c.stages, {});
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(*first, c.expected) << c.layers << " layers, " << c.stages << " stages";
  }
}

TEST(LayerSplit, EndsNeverHaveMoreThanTheMiddle) {
  for (int64_t layers = 1; layers <= 40; ++layers) {
    for (int stages = 1; stages <= layers; ++stages) {
      const Layers first = *SplitLayers(layers, stages, {});
      ASSERT_EQ(first.size(), static_cast<size_t>(stages) + 1);
      ASSERT_EQ(first.front(), 0);
      ASSERT_EQ(first.back(), layers);
      Layers counts;
      for (size_t s = 0; s + 1 < first.size(); ++s) counts.push_back(first[s + 1] - first[s]);
      const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
      ASSERT_LE(*most - *least, 1);
      ASSERT_EQ(counts.back(), *least);
      for (size_t s = 1; s + 1 < counts.size(); ++s) {
        ASSERT_GE(counts[s], counts.back());
        if (layers % stages <= stages - 2) {
          ASSERT_GE(counts[s], counts.front());
        }
      }
    }
  }
}

TEST(LayerSplit, TakesWhatIsRequested) {
  EXPECT_THAT(*SplitLayers(10, 3, {2, 5, 3}), ElementsAre(0, 2, 7, 10));
}

TEST(LayerSplit, ErrorsNameWhatWouldBeRight) {
  const auto message = [](int64_t layers, int stages, const Layers& requested) {
    const auto first = SplitLayers(layers, stages, requested);
    EXPECT_EQ(first.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(first.status().message());
  };
  EXPECT_EQ(message(4, 0, {}), "4 layers on 0 pipeline stages: there is at least 1 stage");
  EXPECT_EQ(message(4, 6, {}),
            "4 layers on 6 pipeline stages: every stage needs a layer; at most 4 stages");
  EXPECT_EQ(message(0, 1, {}), "0 layers on 1 pipeline stages: every stage needs a layer");
  EXPECT_EQ(message(15, 4, {4, 4, 4, 4}),
            "15 layers on 4 pipeline stages as [4, 4, 4, 4]: they add up to 16; nearest that adds "
            "up: [4, 4, 4, 3]");
  EXPECT_EQ(message(12, 3, {2, 5, 3}),
            "12 layers on 3 pipeline stages as [2, 5, 3]: they add up to 10; nearest that adds up: "
            "[4, 5, 3]");
  EXPECT_EQ(message(8, 3, {4, 4}),
            "8 layers on 3 pipeline stages as [4, 4]: 2 numbers of layers; an even split is "
            "[3, 3, 2]");
  EXPECT_EQ(message(8, 2, {-1, int64_t{1} << 62}),
            "8 layers on 2 pipeline stages as [-1, 4611686018427387904]: stage 0 cannot have -1 "
            "layers; stage 1 cannot have 4611686018427387904 layers; nearest that adds up: [1, 7]");
}

}  // namespace
}  // namespace evenkeel
