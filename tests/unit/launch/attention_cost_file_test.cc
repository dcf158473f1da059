#include "launch/attention_cost_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "nlohmann/json.hpp"
#include "runtime/base/exit_code.h"
#include "tests/unit/checkpoint/test_folder.h"

namespace evenkeel {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// Seconds of a pair that tell every shape and pass apart.
double ForwardOf(int64_t q_len, int64_t kv_len) {
  return 1e-10 * (1 + 100.0 / static_cast<double>(q_len) + 10.0 / static_cast<double>(kv_len));
}
double BackwardOf(int64_t q_len, int64_t kv_len) {
  return 3 * ForwardOf(q_len, kv_len) + 1e-11;
}

AttentionCostFile SmallFile() {
  AttentionCostFile file;
  file.program = "evenkeel";
  file.date = "2026-11-27T05:30:00Z";
  file.device = "some device";
  file.threads = 2;
  file.dtype = "float32";
  file.heads = 8;
  file.kv_heads = 2;
  file.head_size = 64;
  file.runs = 5;
  file.matrix_product_flops = 1e11;
  for (const int64_t q_len : {128, 512, 1024, 4096}) {
    for (const int64_t kv_len : {512, 1024, 4096}) {
      if (q_len > kv_len) continue;
      file.points.push_back(
          {q_len, kv_len, 7, ForwardOf(q_len, kv_len), BackwardOf(q_len, kv_len), 1.5e-9});
    }
  }
  return file;
}

absl::StatusOr<AttentionCostFile> ReadText(const std::string& text) {
  const TestFolder folder;
  WriteBytes(folder / "cost.json", text);
  return ReadAttentionCostFile(folder / "cost.json");
}

TEST(AttentionCostFileTest, ComesBackAsWritten) {
  const AttentionCostFile file = SmallFile();
  const auto read = ReadText(ToJson(file).dump());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToJson(*read), ToJson(file));
  EXPECT_EQ(read->device, "some device");
  EXPECT_EQ(read->kv_heads, 2);
  ASSERT_EQ(read->points.size(), file.points.size());
  EXPECT_EQ(read->points[3].backward_s_per_pair, BackwardOf(512, 512));
}

TEST(AttentionCostFileTest, CostsAreThoseMeasuredInProportionToTheHeads) {
  const AttentionCostFile file = SmallFile();
  // A third of the heads, twice the size.
  AttentionCostFile other = file;
  other.heads = 24;
  other.head_size = 32;
  const auto costs = CostsOf(file, 8, 64), scaled = CostsOf(other, 8, 64);
  ASSERT_TRUE(costs.ok() && scaled.ok()) << costs.status() << scaled.status();
  for (const AttentionCostPoint& p : file.points) {
    const double pairs = CausalPairs(p.q_len, p.kv_len);
    EXPECT_DOUBLE_EQ(costs->forward.Seconds(p.q_len, p.kv_len),
                     pairs * ForwardOf(p.q_len, p.kv_len));
    EXPECT_DOUBLE_EQ(costs->backward.Seconds(p.q_len, p.kv_len),
                     pairs * BackwardOf(p.q_len, p.kv_len));
    EXPECT_DOUBLE_EQ(scaled->forward.Seconds(p.q_len, p.kv_len),
                     2.0 / 3 * pairs * ForwardOf(p.q_len, p.kv_len));
  }
}

TEST(AttentionCostFileTest, CostsBetweenDocumentsOfTwoLengthsLieBetween) {
  const auto costs = CostsOf(SmallFile(), 8, 64);
  ASSERT_TRUE(costs.ok()) << costs.status();
  const auto per_pair = [&](int64_t q_len, int64_t kv_len) {
    return costs->forward.Seconds(q_len, kv_len) / CausalPairs(q_len, kv_len);
  };
  // Half the way in logarithms: linear, although no task of 1024 queries on 512 keys exists.
  const int64_t between = 724;  // sqrt(512 * 1024)
  EXPECT_NEAR(per_pair(between, between), (ForwardOf(512, 512) + ForwardOf(1024, 1024)) / 2,
              1e-4 * ForwardOf(512, 512));
  EXPECT_NEAR(
      per_pair(256, 2048),
      (ForwardOf(128, 1024) + ForwardOf(128, 4096) + ForwardOf(512, 1024) + ForwardOf(512, 4096)) /
          4,
      1e-9 * ForwardOf(128, 1024));
  EXPECT_DOUBLE_EQ(per_pair(1, 100), ForwardOf(128, 512));
  EXPECT_DOUBLE_EQ(per_pair(128, 100000), ForwardOf(128, 4096));
  EXPECT_DOUBLE_EQ(per_pair(100000, 200000), ForwardOf(4096, 4096));
}

TEST(AttentionCostFileTest, APlaneBelowZeroDoesNotMakeACost) {
  AttentionCostFile file = SmallFile();
  for (AttentionCostPoint& p : file.points) {
    if (p.q_len == 512 && p.kv_len == 1024) p.forward_s_per_pair = 1;  // an outlier
  }
  const auto costs = CostsOf(file, 8, 64);
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_GT(costs->forward.Seconds(1000, 1000), 0);
}

struct Damage {
  const char* says;
  std::function<void(Json&)> apply;
};

TEST(AttentionCostFileTest, SaysWhatIsWrongWithADamagedFile) {
  const Damage damages[] = {
      {"format: is 'evenkeel attention cost 7', not 'evenkeel attention cost 1'",
       [](Json& j) { j["format"] = "evenkeel attention cost 7"; }},
      {"format: is ''", [](Json& j) { j.erase("format"); }},
      {"(top): is not an object", [](Json& j) { j = Json::array(); }},
      {"heads: is missing", [](Json& j) { j.erase("heads"); }},
      {"heads: 0 is not from 1", [](Json& j) { j["heads"] = 0; }},
      {"head_size: is not an integer", [](Json& j) { j["head_size"] = 64.5; }},
      {"device: is missing", [](Json& j) { j.erase("device"); }},
      {"matrix_product_flops: ", [](Json& j) { j["matrix_product_flops"] = 0; }},
      {"points: is not a list", [](Json& j) { j["points"] = 3; }},
      {"points: is not a list", [](Json& j) { j.erase("points"); }},
      {"points: is empty", [](Json& j) { j["points"] = Json::array(); }},
      {"points[2]: (top): is not an object", [](Json& j) { j["points"][2] = "x"; }},
      {"points[1]: q_len: is missing", [](Json& j) { j["points"][1].erase("q_len"); }},
      {"points[1]: tasks: 0 is not from 1", [](Json& j) { j["points"][1]["tasks"] = 0; }},
      {"points[4]: backward_s_per_pair: is missing",
       [](Json& j) { j["points"][4].erase("backward_s_per_pair"); }},
      {"points[4]: forward_s_per_pair: is not a number",
       [](Json& j) { j["points"][4]["forward_s_per_pair"] = "fast"; }},
      {"points[4]: forward_s_per_pair: -1 is not from",
       [](Json& j) { j["points"][4]["forward_s_per_pair"] = -1; }},
      {"points[0]: 1000 queries on 512 keys", [](Json& j) { j["points"][0]["q_len"] = 1000; }},
      {"512 queries on 512 keys are there twice", [](Json& j) { j["points"][0]["q_len"] = 512; }},
      {"128 queries on 1024 keys are missing", [](Json& j) { j["points"].erase(1); }},
      // The last whole document: its length is still one of keys.
      {"4096 queries on 4096 keys are missing", [](Json& j) { j["points"].erase(8); }},
  };
  ASSERT_EQ(SmallFile().points.size(), 9);
  for (const Damage& damage : damages) {
    Json json = ToJson(SmallFile());
    damage.apply(json);
    const absl::Status status = ReadText(json.dump()).status();
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("cost.json: "), HasSubstr(damage.says),
                      HasSubstr("evenkeel bench attention --json")));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage) << damage.says;
  }
}

TEST(AttentionCostFileTest, SaysWhereAFileStopsBeingJson) {
  const std::string text = ToJson(SmallFile()).dump();
  const absl::Status status = ReadText(text.substr(0, text.size() / 2)).status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cost.json: byte "), HasSubstr("measure it again")));
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kUsage);
  EXPECT_THAT(std::string(ReadAttentionCostFile("/nowhere/cost.json").status().message()),
              HasSubstr("/nowhere/cost.json"));
}

}  // namespace
}  // namespace evenkeel
