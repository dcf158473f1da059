// What does planning a launch of softmax attention cost the host? Prints microseconds, the median
// of many plans: the plan itself and the copy of its bytes to where uploads start from. Needs no
// GPU.
//   softmax_attention_plan [plans per case = 300]
// A plan knows heads by their group alone: 32/8 and 4/1 heads have one of 4, 32/32 of 1.
#include "attention/kernels/cuda/softmax_attention_plan.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace evenkeel {
namespace {

using Tasks = std::vector<AttentionTask>;

Tasks Documents(int64_t length, int64_t count) {
  Tasks tasks;
  for (int64_t i = 0; i < count; ++i) tasks.push_back({i * length, length, i * length, length});
  return tasks;
}

// Shards of 128 to 1024 queries on prefixes of 1K to 128K keys: of eight documents, in no order, or
// each of a document of its own.
Tasks MixedShards(int count, bool shared, bool shuffled, unsigned seed) {
  std::mt19937 rng(seed);
  Tasks tasks;
  int64_t rows = 0, keys = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t shard = int64_t{128} << (rng() % 4);
    const int64_t kv_len = (1 + static_cast<int64_t>(rng() % 128)) * 1024;
    const int64_t kv_begin = shared ? static_cast<int64_t>(rng() % 8) * 131072 : keys;
    tasks.push_back({rows, shard, kv_begin, kv_len});
    rows += shard;
    keys += kv_len;
  }
  if (shuffled) std::shuffle(tasks.begin(), tasks.end(), rng);
  return tasks;
}

std::vector<Tasks> ManyMixedShards(int count, bool shared, bool shuffled) {
  std::vector<Tasks> lists;
  for (unsigned seed = 0; seed < 256; ++seed) {
    lists.push_back(MixedShards(count, shared, shuffled, seed));
  }
  return lists;
}

// 500 shards of 128 queries, each with 65536 keys of one of `documents`.
Tasks ShortShards(int64_t documents) {
  Tasks tasks;
  for (int64_t i = 0; i < 500; ++i) tasks.push_back({i * 128, 128, i % documents * 65536, 65536});
  return tasks;
}

// More than the L2 cache of a core holds.
void WalkThroughOtherMemory() {
  static std::vector<std::byte> other(size_t{8} << 20);
  for (size_t i = 0; i < other.size(); i += 64) other[i] ^= std::byte{1};
}

double MedianMicroseconds(const std::vector<Tasks>& lists, int group, bool backward, bool cold,
                          int plans) {
  static std::vector<std::byte> staging(size_t{64} << 20);
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (int i = 0; i < plans; ++i) {
    const Tasks& tasks = lists[static_cast<size_t>(i) % lists.size()];
    if (cold) WalkThroughOtherMemory();
    const auto begin = Clock::now();
    const SoftmaxAttentionPlan plan = PlanSoftmaxAttention(
        tasks.data(), static_cast<int64_t>(tasks.size()), TilingOf(128), group, backward);
    if (plan.bytes.size() > staging.size()) std::abort();
    std::memcpy(staging.data(), plan.bytes.data(), plan.bytes.size());
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + plans / 2, times.end());
  return times[static_cast<size_t>(plans) / 2];
}

void Run(const char* name, const std::vector<Tasks>& lists, int plans) {
  const Tasks& tasks = lists[0];
  for (const int group : {4, 1}) {
    const SoftmaxAttentionPlan plan = PlanSoftmaxAttention(
        tasks.data(), static_cast<int64_t>(tasks.size()), TilingOf(128), group, true);
    std::printf("%-24s %6zu %6d %8ld %9ld %8zu", name, tasks.size(), group,
                static_cast<long>(plan.num_forward_tiles), static_cast<long>(plan.num_key_tiles),
                plan.bytes.size());
    for (const bool backward : {false, true}) {
      for (const bool cold : {false, true}) {
        std::printf(" %9.1f", MedianMicroseconds(lists, group, backward, cold, plans));
      }
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  const int plans = std::max(1, argc > 1 ? std::atoi(argv[1]) : 300);
  std::printf("# %-22s %6s %6s %8s %9s %8s %9s %9s %9s %9s\n", "case", "tasks", "group", "forward",
              "key tiles", "bytes", "forward", "cold", "both", "cold");
  evenkeel::Run("32768 x 1", {evenkeel::Documents(32768, 1)}, plans);
  evenkeel::Run("131072 x 1", {evenkeel::Documents(131072, 1)}, plans);
  evenkeel::Run("8192 x 8", {evenkeel::Documents(8192, 8)}, plans);
  evenkeel::Run("mixed, 8 documents", evenkeel::ManyMixedShards(200, true, false), plans);
  evenkeel::Run("mixed, own keys", evenkeel::ManyMixedShards(200, false, false), plans);
  evenkeel::Run("128 on 65536, own keys", {evenkeel::ShortShards(500)}, plans);
  evenkeel::Run("128 on 65536, 4 shared", {evenkeel::ShortShards(4)}, plans);
  evenkeel::Run("128 on 65536, 1 shared", {evenkeel::ShortShards(1)}, plans);
  evenkeel::Run("500 mixed, own keys", evenkeel::ManyMixedShards(500, false, true), plans);
}
