// Times the CUDA attention kernels on one GPU and prints a table; benchmarks/gpu.sh runs it beside
// its peers. Medians of timed launches, the L2 cache flushed before each, on random data.
//
//   gpu_attention softmax           whole causal documents
//   gpu_attention sustained         the same: one launch on a GPU that has rested, and launches one
//                                   after the other for a second
//   gpu_attention tasks             fused batches of query shards with long key prefixes
//   gpu_attention shards            the same, with grouped heads: backward beside whole documents
//   gpu_attention lightning         linear attention with fixed decay
//   gpu_attention decode            a token of each of many sequences, beside a plain copy
//   gpu_attention dump FOLDER       inputs and results of small cases, for peers/attention_error.py
//
// The portable columns are the kernels of sm_80, in TFLOP/s or million tokens/s. FLOPs count 4 per
// head dimension and (query, key) pair kept by the mask, 2.5 times that backward.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/cuda/softmax_attention_cuda.h"
#include "benchmarks/gpu_linear_attention.h"
#include "benchmarks/gpu_measure.h"

namespace evenkeel {
namespace {

struct SoftmaxCase {
  std::vector<AttentionTask> tasks;
  int64_t q_rows, kv_rows;
  int heads, kv_heads, dim;
  KeyGradientMode mode = KeyGradientMode::kWriteBf16;
};

double Pairs(const std::vector<AttentionTask>& tasks) {
  double pairs = 0.0;
  for (const AttentionTask& t : tasks) {
    pairs += static_cast<double>(t.q_len) * static_cast<double>(t.kv_len - t.q_len) +
             0.5 * static_cast<double>(t.q_len) * static_cast<double>(t.q_len + 1);
  }
  return pairs;
}

// Device tensors and parameters of one case, dense rows.
struct SoftmaxRun {
  explicit SoftmaxRun(const SoftmaxCase& c)
      : plan(PlanSoftmaxAttention(c.tasks.data(), static_cast<int64_t>(c.tasks.size()),
                                  TilingOf(c.dim), c.heads / c.kv_heads, true)),
        plan_memory(PlanMemoryBytes(plan)),
        q(c.q_rows * c.heads * c.dim * 2),
        k(c.kv_rows * c.kv_heads * c.dim * 2),
        v(k.size()),
        dout(q.size()),
        out(q.size()),
        lse(c.q_rows * c.heads * 4),
        dq(q.size()),
        dk(k.size() * (c.mode == KeyGradientMode::kWriteBf16 ? 1 : 2)),
        dv(dk.size()),
        workspace(SoftmaxBackwardWorkspaceBytes(plan, c.heads, c.dim, c.dim)) {
    Check(cudaMemcpy(plan_memory.data(), plan.bytes.data(), plan.bytes.size(),
                     cudaMemcpyHostToDevice),
          "upload");
    Check(LaunchPlanTiles(plan, plan_memory.data(), nullptr), "tiles");
    for (DeviceBytes* x : {&q, &k, &v, &dout}) FillRandom(*x, 1.0f);
    for (DeviceBytes* x : {&dk, &dv}) Check(cudaMemset(x->data(), 0, x->size()), "clear");
    SoftmaxForwardParams& f = params.forward;
    f.plan = ViewOf(plan, plan_memory.data());
    f.num_heads = c.heads;
    f.num_kv_heads = c.kv_heads;
    f.head_dim = f.value_dim = c.dim;
    f.scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
    f.q_rows = c.q_rows;
    f.kv_rows = c.kv_rows;
    f.q = q.data();
    f.k = k.data();
    f.v = v.data();
    f.out = out.data();
    f.lse = static_cast<float*>(lse.data());
    f.q_stride = f.out_stride = params.dout_stride = params.dq_stride = int64_t{c.heads} * c.dim;
    f.k_stride = f.v_stride = params.dk_stride = params.dv_stride = int64_t{c.kv_heads} * c.dim;
    params.dout = dout.data();
    params.dq = dq.data();
    params.dk = dk.data();
    params.dv = dv.data();
    params.mode = c.mode;
    params.workspace = workspace.data();
  }

  SoftmaxAttentionPlan plan;
  DeviceBytes plan_memory, q, k, v, dout, out, lse, dq, dk, dv, workspace;
  SoftmaxBackwardParams params;
};

void TimeSoftmax(const char* name, const SoftmaxCase& c) {
  SoftmaxRun run(c);
  const double flops = 4.0 * c.heads * c.dim * Pairs(c.tasks);
  const double forward =
      MedianMs([&] { return LaunchSoftmaxForward(run.params.forward, nullptr); });
  SoftmaxForwardParams portable = run.params.forward;
  portable.portable = true;
  const double on_any = MedianMs([&] { return LaunchSoftmaxForward(portable, nullptr); });
  const double backward = MedianMs([&] { return LaunchSoftmaxBackward(run.params, nullptr); });
  SoftmaxBackwardParams portable_backward = run.params;
  portable_backward.forward.portable = true;
  const double backward_on_any =
      MedianMs([&] { return LaunchSoftmaxBackward(portable_backward, nullptr); });
  const auto begin = std::chrono::steady_clock::now();
  constexpr int kPlans = 20;
  for (int i = 0; i < kPlans; ++i) {
    const SoftmaxAttentionPlan plan =
        PlanSoftmaxAttention(c.tasks.data(), static_cast<int64_t>(c.tasks.size()), TilingOf(c.dim),
                             c.heads / c.kv_heads, true);
    if (plan.bytes.size() != run.plan.bytes.size()) std::abort();
  }
  const double plan_us =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() /
      kPlans;
  std::printf("%-16s %6zu %5d %5d %4d %10.3f %8.1f %8.1f %10.3f %8.1f %8.1f %8.1f\n", name,
              c.tasks.size(), c.heads, c.kv_heads, c.dim, forward, flops / forward * 1e-9,
              flops / on_any * 1e-9, backward, 2.5 * flops / backward * 1e-9,
              2.5 * flops / backward_on_any * 1e-9, plan_us);
  std::fflush(stdout);
}

void PrintSoftmaxHeader() {
  std::printf("# %-14s %6s %5s %5s %4s %10s %8s %8s %10s %8s %8s %8s\n", "case", "tasks", "heads",
              "kv", "dim", "fwd ms", "TFLOP/s", "portable", "bwd ms", "TFLOP/s", "portable",
              "plan us");
}

SoftmaxCase Documents(int64_t length, int64_t count, int heads, int kv_heads, int dim) {
  SoftmaxCase c = {{}, length * count, length * count, heads, kv_heads, dim};
  for (int64_t i = 0; i < count; ++i) c.tasks.push_back({i * length, length, i * length, length});
  return c;
}

void BenchSoftmax() {
  PrintSoftmaxHeader();
  for (const int dim : {128, 64, 256}) {
    for (const int64_t length : {2048, 8192, 32768, 131072}) {
      if (dim != 128 && (length == 2048 || length == 131072)) continue;
      const std::string name =
          std::to_string(length) + " x " + std::to_string(std::max<int64_t>(1, 32768 / length));
      TimeSoftmax(name.c_str(),
                  Documents(length, std::max<int64_t>(1, 32768 / length), 32, 8, dim));
    }
  }
}

void BenchSustained() {
  std::printf("# TFLOP/s of a launch after a rest, and of launches one after the other\n");
  std::printf("# %-14s %5s %5s %4s %14s %14s %14s %14s\n", "case", "heads", "kv", "dim",
              "fwd_rested", "fwd_sustained", "bwd_rested", "bwd_sustained");
  struct Row {
    int64_t length, count;
    int heads, kv_heads, dim;
  };
  const Row rows[] = {{8192, 4, 32, 8, 128},   {32768, 1, 32, 8, 128}, {8192, 2, 16, 16, 128},
                      {32768, 1, 16, 16, 128}, {8192, 4, 32, 8, 64},   {32768, 1, 32, 8, 64},
                      {8192, 4, 32, 8, 256},   {32768, 1, 32, 8, 256}};
  for (const Row& row : rows) {
    const SoftmaxCase c = Documents(row.length, row.count, row.heads, row.kv_heads, row.dim);
    SoftmaxRun run(c);
    const double flops = 4.0 * c.heads * c.dim * Pairs(c.tasks);
    const RestedAndSustained forward = MeasureRestedAndSustained(
        [&] { return LaunchSoftmaxForward(run.params.forward, nullptr); });
    const RestedAndSustained backward =
        MeasureRestedAndSustained([&] { return LaunchSoftmaxBackward(run.params, nullptr); });
    const std::string name = std::to_string(row.length) + " x " + std::to_string(row.count);
    std::printf("%-16s %5d %5d %4d %14.1f %14.1f %14.1f %14.1f\n", name.c_str(), c.heads,
                c.kv_heads, c.dim, flops / forward.rested_ms * 1e-9,
                flops / forward.sustained_ms * 1e-9, 2.5 * flops / backward.rested_ms * 1e-9,
                2.5 * flops / backward.sustained_ms * 1e-9);
    std::fflush(stdout);
  }
}

void BenchTasks() {
  PrintSoftmaxHeader();
  const int64_t table[][3] = {
      {128, 8192, 128}, {128, 65536, 32}, {512, 65536, 16}, {1024, 131072, 8}, {4096, 131072, 4}};
  for (const auto& [shard, context, count] : table) {
    SoftmaxCase c = {{}, shard * count, context * count, 32, 32, 128};
    for (int64_t i = 0; i < count; ++i) {
      c.tasks.push_back({i * shard, shard, i * context, context});
    }
    const std::string name = std::to_string(shard) + " on " + std::to_string(context);
    TimeSoftmax(name.c_str(), c);
  }
  // Shards of mixed lengths at random places of eight documents whose keys they share.
  std::mt19937 rng(3);
  SoftmaxCase c = {{}, 0, 8 * 32768, 32, 8, 128};
  for (int i = 0; i < 200; ++i) {
    const int64_t shard = int64_t{128} << (rng() % 4);
    const int64_t prefix = 1024 + rng() % 24 * 1024;
    c.tasks.push_back({c.q_rows, shard, static_cast<int64_t>(rng() % 8) * 32768, prefix + shard});
    c.q_rows += shard;
  }
  TimeSoftmax("mixed shards", c);
}

// Shards with grouped heads, as attention servers get them, beside whole documents. The limit is
// that of the bytes of k, v, dk and dv, each read or written once at 3 TB/s.
void BenchShards() {
  struct Row {
    int64_t shard, context, count;
    int heads, kv_heads, dim;
    bool shared;  // all shards see the same keys
  };
  const Row rows[] = {
      {32768, 32768, 1, 32, 8, 128, false},  {128, 8192, 32, 32, 8, 128, false},
      {128, 32768, 16, 32, 8, 128, false},   {128, 131072, 4, 32, 8, 128, false},
      {256, 32768, 16, 32, 8, 128, false},   {512, 32768, 8, 32, 8, 128, false},
      {1024, 32768, 8, 32, 8, 128, false},   {1024, 131072, 2, 32, 8, 128, false},
      {4096, 131072, 2, 32, 8, 128, false},  {128, 32768, 16, 32, 8, 128, true},
      {1024, 32768, 8, 32, 8, 128, true},    {32768, 32768, 8, 4, 1, 128, false},
      {128, 32768, 128, 4, 1, 128, false},   {128, 32768, 16, 4, 1, 128, false},
      {1024, 32768, 16, 4, 1, 128, false},   {4096, 131072, 4, 4, 1, 128, false},
      {32768, 32768, 1, 32, 8, 64, false},   {128, 32768, 16, 32, 8, 64, false},
      {1024, 32768, 8, 32, 8, 64, false},    {32768, 32768, 1, 32, 8, 256, false},
      {128, 32768, 16, 32, 8, 256, false},   {1024, 32768, 8, 32, 8, 256, false},
      {32768, 32768, 1, 32, 32, 128, false}, {128, 32768, 8, 32, 32, 128, false},
      {1024, 32768, 4, 32, 32, 128, false},
  };
  std::printf(
      "# backward TFLOP/s with dk, dv written in bf16, written in float32, added in float32\n");
  std::printf("# %-18s %6s %5s %5s %4s %8s %8s %8s %8s %8s %8s %8s\n", "case", "tasks", "heads",
              "kv", "dim", "forward", "bf16", "limit", "float32", "limit", "added", "limit");
  for (const Row& row : rows) {
    const int64_t sets = row.shared ? 1 : row.count;
    SoftmaxCase c = {{},        row.shard * row.count, row.context * sets,
                     row.heads, row.kv_heads,          row.dim};
    for (int64_t i = 0; i < row.count; ++i) {
      c.tasks.push_back({i * row.shard, row.shard, i % sets * row.context, row.context});
    }
    const double flops = 4.0 * c.heads * c.dim * Pairs(c.tasks);
    const std::string name = std::to_string(row.shard) + " on " + std::to_string(row.context) +
                             (row.shared ? " shared" : "");
    std::printf("%-20s %6zu %5d %5d %4d", name.c_str(), c.tasks.size(), c.heads, c.kv_heads, c.dim);
    c.mode = KeyGradientMode::kAddFloat32;
    SoftmaxRun run(c);
    const double forward =
        MedianMs([&] { return LaunchSoftmaxForward(run.params.forward, nullptr); });
    std::printf(" %8.1f", flops / forward * 1e-9);
    const std::pair<KeyGradientMode, int> modes[] = {{KeyGradientMode::kWriteBf16, 2 + 2},
                                                     {KeyGradientMode::kWriteFloat32, 2 + 4},
                                                     {KeyGradientMode::kAddFloat32, 2 + 8}};
    for (const auto& [mode, element_bytes] : modes) {
      run.params.mode = mode;
      const double backward = MedianMs([&] { return LaunchSoftmaxBackward(run.params, nullptr); });
      const double bytes =
          2.0 * static_cast<double>(c.kv_rows) * c.kv_heads * c.dim * element_bytes;
      std::printf(" %8.1f %8.0f", 2.5 * flops / backward * 1e-9, 2.5 * flops / bytes * 3.0);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

void Save(const std::string& path, const DeviceBytes& x) {
  std::vector<char> host(x.size());
  Check(cudaMemcpy(host.data(), x.data(), x.size(), cudaMemcpyDeviceToHost), "download");
  std::ofstream(path, std::ios::binary).write(host.data(), static_cast<std::streamsize>(x.size()));
}

void Dump(const std::string& folder) {
  const SoftmaxCase cases[] = {Documents(2048, 1, 8, 2, 128), Documents(4096, 1, 4, 4, 64),
                               Documents(1024, 1, 4, 1, 256)};
  for (const SoftmaxCase& c : cases) {
    SoftmaxRun run(c);
    Check(LaunchSoftmaxForward(run.params.forward, nullptr), "forward");
    Check(LaunchSoftmaxBackward(run.params, nullptr), "backward");
    Check(cudaDeviceSynchronize(), "run");
    const std::string base = folder + "/softmax_" + std::to_string(c.q_rows) + "_" +
                             std::to_string(c.heads) + "_" + std::to_string(c.kv_heads) + "_" +
                             std::to_string(c.dim) + "_";
    const std::pair<const char*, const DeviceBytes*> tensors[] = {
        {"q", &run.q},     {"k", &run.k},   {"v", &run.v},   {"dout", &run.dout},
        {"out", &run.out}, {"dq", &run.dq}, {"dk", &run.dk}, {"dv", &run.dv}};
    for (const auto& [name, tensor] : tensors) Save(base + name, *tensor);
  }
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "softmax") {
    evenkeel::BenchSoftmax();
  } else if (mode == "sustained") {
    evenkeel::BenchSustained();
  } else if (mode == "tasks") {
    evenkeel::BenchTasks();
  } else if (mode == "shards") {
    evenkeel::BenchShards();
  } else if (mode == "lightning") {
    evenkeel::BenchLightning();
  } else if (mode == "decode") {
    evenkeel::BenchDecode();
  } else if (mode == "dump" && argc > 2) {
    evenkeel::Dump(argv[2]);
  } else {
    std::fprintf(
        stderr,
        "usage: gpu_attention softmax|sustained|tasks|shards|lightning|decode|dump FOLDER\n");
    return 2;
  }
  return 0;
}
