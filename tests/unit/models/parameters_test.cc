// Slices of parameters: whatever a rank holds, together the ranks hold every element, and the same
// element is the same everywhere.
#include "models/parameters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "parallel/parameter_store.h"
#include "tests/support/tiny_models.h"

namespace evenkeel {
namespace {

using testing_support::AllTinyModels;
using testing_support::NamedModel;

// Models whose heads eight ranks can share; vocabulary and intermediate size do not divide.
std::vector<NamedModel> Models() {
  std::vector<NamedModel> models = AllTinyModels();
  for (NamedModel& named : models) {
    named.config.num_layers = 6;
    named.config.num_heads = 8;
    named.config.hidden_size = 24;
    named.config.head_dim = 6;
    named.config.intermediate_size = 22;
    if (named.config.num_kv_heads > 0) named.config.num_kv_heads = 2;
    named.config.lrpe_layers = {0, 4};
  }
  return models;
}

// Stages 1 and 3 of 4, of a tensor-parallel rank; or everything.
ModelPart Part(const ModelConfig& config, int tp, int tp_rank, bool is_whole, int64_t multiple) {
  ModelPart part;
  part.chunks = {{1, 2}, {4, 6}};
  if (is_whole) part = WholeModel(config);
  part.is_first = is_whole;
  part.tp = tp;
  part.tp_rank = tp_rank;
  part.unit_multiple = multiple;
  return part;
}

const ParameterSpec& Find(const ParameterLayout& layout, const std::string& name) {
  const auto found = std::find_if(layout.specs().begin(), layout.specs().end(),
                                  [&](const ParameterSpec& spec) { return spec.name == name; });
  EXPECT_NE(found, layout.specs().end()) << name;
  return *found;
}

// Against the definition, element by element: coordinate c of the sliced dimension of the whole is
// held if c modulo the size of a part is in the slice.
TEST(ForEachRun, MapsRandomSlicesElementByElement) {
  const Philox random(3, 1);
  uint64_t drawn = 0;
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random.Bits(drawn++) % static_cast<uint64_t>(high - low + 1));
  };
  for (int round = 0; round < 500; ++round) {
    ParameterSpec spec;
    const auto rank = static_cast<int>(draw(1, 3));
    spec.sliced_dim = static_cast<int>(draw(0, rank - 1));
    spec.parts = draw(1, 4);
    const int64_t part = draw(1, 6);
    int64_t dims[3] = {draw(1, 4), draw(1, 4), draw(1, 4)};
    dims[spec.sliced_dim] = spec.parts * part;
    spec.full_shape = rank == 1   ? Shape{dims[0]}
                      : rank == 2 ? Shape{dims[0], dims[1]}
                                  : Shape{dims[0], dims[1], dims[2]};
    spec.slice.begin = draw(0, part);
    spec.slice.end = draw(spec.slice.begin, part);  // may be empty
    spec.shape = spec.full_shape;
    spec.shape.dims[spec.sliced_dim] = spec.parts * spec.slice.size();

    int64_t inner = 1;
    for (int i = spec.sliced_dim + 1; i < rank; ++i) inner *= dims[i];
    std::vector<int64_t> expected;  // by element of the slice
    for (int64_t i = 0; i < spec.full_shape.num_elements(); ++i) {
      const int64_t at = i / inner % dims[spec.sliced_dim] % part;
      if (spec.slice.begin <= at && at < spec.slice.end) expected.push_back(i);
    }
    std::vector<int64_t> found(expected.size(), -1);
    ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
      for (int64_t i = 0; i < count; ++i) found.at(static_cast<size_t>(local + i)) = full + i;
    });
    ASSERT_EQ(found, expected) << spec.full_shape.ToString() << ", " << spec.parts << " parts, ["
                               << spec.slice.begin << ", " << spec.slice.end << ")";
  }
}

TEST(ParameterLayout, RanksHoldEveryElementAsOftenAsTheySay) {
  for (const NamedModel& named : Models()) {
    const ParameterLayout whole(named.config);
    for (const int tp : {1, 2, 4, 8}) {
      std::map<std::string, std::vector<int>> holders;
      for (const ParameterSpec& spec : whole.specs()) {
        EXPECT_EQ(spec.shape.ToString(), spec.full_shape.ToString());
        holders[spec.name].resize(static_cast<size_t>(spec.size()));
      }
      std::map<std::string, TensorCopies> copies;
      for (int rank = 0; rank < tp; ++rank) {
        const ParameterLayout mine(named.config, Part(named.config, tp, rank, true, 1));
        ASSERT_EQ(mine.specs().size(), whole.specs().size());
        for (const ParameterSpec& spec : mine.specs()) {
          ASSERT_EQ(spec.full_shape.ToString(), Find(whole, spec.name).shape.ToString());
          copies[spec.name] = spec.copies;
          int64_t next = 0;
          ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
            ASSERT_EQ(local, next);
            next += count;
            for (int64_t i = 0; i < count; ++i) {
              ++holders[spec.name].at(static_cast<size_t>(full + i));
            }
          });
          ASSERT_EQ(next, spec.size()) << spec.name;
        }
      }
      for (const auto& [name, counts] : holders) {
        int expected = 1;
        if (copies[name] == TensorCopies::kAll) expected = tp;
        if (copies[name] == TensorCopies::kKeyValue) {
          expected = tp / static_cast<int>(named.config.kv_heads());
          EXPECT_GT(expected, 1) << name;
        }
        for (const int count : counts) ASSERT_EQ(count, expected) << named.name << " " << name;
      }
    }
  }
}

TEST(ParameterLayout, UnitsFollowEachOtherAndHoldWhatTheyAreNamedFor) {
  for (const NamedModel& named : Models()) {
    const ModelConfig& config = named.config;
    for (const bool is_whole : {true, false}) {
      for (const int64_t multiple : {1, 64, 384}) {
        const ParameterLayout layout(config, Part(config, 4, 3, is_whole, multiple));
        const std::vector<int64_t>& begin = layout.unit_begin();
        ASSERT_EQ(layout.num_layers(), is_whole ? 6 : 3);
        ASSERT_EQ(static_cast<int64_t>(begin.size()), layout.num_layers() + 4);
        ASSERT_EQ(begin.front(), 0);
        ASSERT_EQ(begin.back(), layout.num_elements());
        for (size_t unit = 0; unit + 1 < begin.size(); ++unit) {
          ASSERT_LE(begin[unit], begin[unit + 1]);
          ASSERT_EQ(begin[unit + 1] % multiple, 0);
        }
        int64_t end = 0;
        for (const ParameterSpec& spec : layout.specs()) {
          ASSERT_GE(spec.offset, end) << spec.name << " overlaps the one before";
          ASSERT_LT(spec.offset - end, std::max<int64_t>(1, 2 * multiple)) << spec.name;
          end = spec.offset + spec.size();
          // The unit it lies in, by what its name says.
          int unit = layout.head_unit();
          for (int64_t local = 0; local < layout.num_layers(); ++local) {
            const std::string prefix = "model.layers." + std::to_string(layout.layer(local)) + ".";
            if (spec.name.rfind(prefix, 0) == 0) unit = ParameterLayout::UnitOfLayer(local);
          }
          if (spec.name == "model.embed_tokens.weight") unit = ParameterLayout::kEmbeddingUnit;
          if (spec.name.find("rpe.") != std::string::npos) unit = ParameterLayout::kExactUnit;
          const auto at = static_cast<size_t>(unit);
          ASSERT_GE(spec.offset, begin[at]) << named.name << " " << spec.name;
          ASSERT_LE(end, begin[at + 1]) << named.name << " " << spec.name;
        }
        // The last stage has its own copy of a tied embedding.
        EXPECT_EQ(begin[2] > begin[1], is_whole || config.tie_embeddings) << named.name;
      }
    }
  }
}

// Initial weights of a slice, and of what data-parallel ranks own of it, are those of the whole.
TEST(ParameterLayout, InitialWeightsDoNotDependOnWhoHoldsThem) {
  ThreadPool pool(2);
  for (const NamedModel& named : Models()) {
    const ParameterLayout whole(named.config);
    std::vector<double> all(static_cast<size_t>(whole.num_elements()), std::nan(""));
    whole.Initialize(pool, 5, TensorView(all.data(), DType::kF64, {whole.num_elements()}));
    constexpr int kRanks = 3;
    for (const bool is_whole : {true, false}) {
      for (const int tp : {1, 2, 8}) {
        const ParameterLayout mine(named.config,
                                   Part(named.config, tp, tp - 1, is_whole, 2 * kRanks));
        for (int rank = 0; rank < kRanks; ++rank) {
          const std::vector<RowRange> owned =
              OwnedRanges(mine.unit_begin(), ShardingStage::kOptimizer, kRanks, rank);
          const int64_t n = owned.back().to + owned.back().count;
          std::vector<double> values(static_cast<size_t>(n), std::nan(""));
          mine.Initialize(pool, 5, owned, TensorView(values.data(), DType::kF64, {n}));
          for (const ParameterSpec& spec : mine.specs()) {
            const int64_t offset = Find(whole, spec.name).offset;
            std::vector<int64_t> element(static_cast<size_t>(spec.size()));  // of the whole tensor
            ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
              for (int64_t i = 0; i < count; ++i) {
                element.at(static_cast<size_t>(local + i)) = full + i;
              }
            });
            for (const RowRange& range : owned) {
              for (int64_t i = 0; i < range.count; ++i) {
                const int64_t at = range.from + i - spec.offset;
                if (at < 0 || at >= spec.size()) continue;
                ASSERT_EQ(values[static_cast<size_t>(range.to + i)],
                          all[static_cast<size_t>(offset + element[static_cast<size_t>(at)])])
                    << named.name << " " << spec.name;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
