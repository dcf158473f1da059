// Times the CUDA attention kernels on one GPU and prints a table; benchmarks/gpu.sh runs it beside
// its peers. Medians of timed launches, the L2 cache flushed before each, on random data.
//
//   gpu_attention softmax           whole causal documents
//   gpu_attention tasks             fused batches of query shards with long key prefixes
//   gpu_attention shards            the same, with grouped heads: backward beside whole documents
//   gpu_attention lightning         linear attention with fixed decay
//   gpu_attention decode            a token of each of many sequences, beside a plain copy
//   gpu_attention dump FOLDER       inputs and results of small cases, for peers/attention_error.py
//
// The portable columns are the kernels of sm_80, in TFLOP/s or million tokens/s. FLOPs count 4 per
// head dimension and (query, key) pair kept by the mask, 2.5 times that backward.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/kernels/cuda/lightning_decode_cuda.h"
#include "attention/kernels/cuda/softmax_attention_cuda.h"

namespace evenkeel {
namespace {

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class DeviceBytes {
 public:
  explicit DeviceBytes(size_t size) : size_(size) {
    Check(cudaMalloc(&data_, size + 16), "malloc");
  }
  ~DeviceBytes() { (void)cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void* data() const { return data_; }
  size_t size() const { return size_; }
  void Upload(const void* source) {
    Check(cudaMemcpy(data_, source, size_, cudaMemcpyHostToDevice), "upload");
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

// bf16 numbers from a normal distribution; one random block repeated at shifting offsets.
void FillRandom(DeviceBytes& target, float deviation) {
  constexpr size_t kBlock = (1 << 20) + 7;
  static std::vector<float> normal;
  if (normal.empty()) {
    std::mt19937 rng(1);
    std::normal_distribution<float> distribution;
    normal.resize(kBlock);
    for (float& x : normal) x = distribution(rng);
  }
  static size_t shift = 0;
  std::vector<__nv_bfloat16> block(kBlock);
  for (size_t i = 0; i < kBlock; ++i) {
    block[i] = __float2bfloat16(deviation * normal[(i + shift) % kBlock]);
  }
  shift += 12345;
  auto* const bytes = static_cast<char*>(target.data());
  Check(cudaMemcpy(bytes, block.data(), std::min(kBlock * 2, target.size()), cudaMemcpyDefault),
        "fill");
  for (size_t at = kBlock * 2; at < target.size(); at += kBlock * 2) {
    Check(cudaMemcpyAsync(bytes + at, bytes, std::min(kBlock * 2, target.size() - at),
                          cudaMemcpyDefault),
          "fill");
  }
}

double MedianMs(const std::function<cudaError_t()>& run) {
  static DeviceBytes flush(size_t{256} << 20);
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "event");
  Check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  double total = 0.0;
  for (int i = 0; i < 60 && (i < 7 || total < 250.0); ++i) {
    Check(cudaMemsetAsync(flush.data(), 0, flush.size()), "flush");
    Check(cudaEventRecord(begin), "record");
    Check(run(), "launch");
    Check(cudaEventRecord(end), "record");
    Check(cudaEventSynchronize(end), "run");
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (i >= 2) times.push_back(ms);  // the first two warm up
    total += ms;
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

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
        plan_bytes(plan.bytes.size()),
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
    plan_bytes.Upload(plan.bytes.data());
    for (DeviceBytes* x : {&q, &k, &v, &dout}) FillRandom(*x, 1.0f);
    for (DeviceBytes* x : {&dk, &dv}) Check(cudaMemset(x->data(), 0, x->size()), "clear");
    SoftmaxForwardParams& f = params.forward;
    f.plan = ViewOf(plan, plan_bytes.data());
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
  DeviceBytes plan_bytes, q, k, v, dout, out, lse, dq, dk, dv, workspace;
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
      {32768, 32768, 1, 32, 8, 128, false}, {128, 8192, 32, 32, 8, 128, false},
      {128, 32768, 16, 32, 8, 128, false},  {128, 131072, 4, 32, 8, 128, false},
      {256, 32768, 16, 32, 8, 128, false},  {512, 32768, 8, 32, 8, 128, false},
      {1024, 32768, 8, 32, 8, 128, false},  {1024, 131072, 2, 32, 8, 128, false},
      {4096, 131072, 2, 32, 8, 128, false}, {128, 32768, 16, 32, 8, 128, true},
      {1024, 32768, 8, 32, 8, 128, true},   {32768, 32768, 8, 4, 1, 128, false},
      {128, 32768, 128, 4, 1, 128, false},  {128, 32768, 16, 4, 1, 128, false},
      {1024, 32768, 16, 4, 1, 128, false},  {4096, 131072, 4, 4, 1, 128, false},
      {32768, 32768, 1, 32, 8, 64, false},  {128, 32768, 16, 32, 8, 64, false},
      {1024, 32768, 8, 32, 8, 64, false},   {32768, 32768, 1, 32, 32, 128, false},
      {128, 32768, 8, 32, 32, 128, false},  {1024, 32768, 4, 32, 32, 128, false},
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

struct LightningCase {
  std::string name;
  std::vector<int64_t> lengths;  // of the documents
  float decay;                   // factor of the slopes
};

std::vector<LightningCase> LightningCases() {
  std::vector<LightningCase> cases;
  const int64_t table[][2] = {{2048, 16}, {8192, 4}, {32768, 1}, {131072, 1}, {524288, 1}};
  for (const auto& [length, count] : table) {
    cases.push_back({std::to_string(length) + " x " + std::to_string(count),
                     std::vector<int64_t>(static_cast<size_t>(count), length), 1.0f});
  }
  // The last layer of TransNormerLLM hardly decays: no token is too far to count.
  for (const size_t i : {2, 3}) {
    cases.push_back({cases[i].name + " slow", cases[i].lengths, 1e-5f});
  }
  std::mt19937 rng(5);
  LightningCase mixed = {"32768 mixed", {}, 1.0f};
  for (int64_t left = 32768; left > 0; left -= mixed.lengths.back()) {
    mixed.lengths.push_back(std::min<int64_t>(left, 1 + rng() % 8192));
  }
  cases.push_back(mixed);
  cases.push_back({"32 x 1024", std::vector<int64_t>(1024, 32), 1.0f});
  return cases;
}

void BenchLightning() {
  int multiprocessors = 0;
  Check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "attribute");
  std::printf("# %-14s %5s %4s %8s %10s %12s %8s %10s %12s %8s\n", "case", "heads", "dim",
              "segment", "fwd ms", "Mtokens/s", "portable", "bwd ms", "Mtokens/s", "portable");
  for (const LightningCase& c : LightningCases()) {
    const int heads = 16, dim = 128;
    const auto count = static_cast<int64_t>(c.lengths.size());
    std::vector<int64_t> cu_seqlens = {0};
    for (const int64_t length : c.lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
    const int64_t tokens = cu_seqlens.back();
    const int rows = LightningSegmentRows(tokens, heads, dim, multiprocessors);
    const LightningPlan plan = PlanLightningAttention(cu_seqlens.data(), count, rows);
    DeviceBytes plan_bytes(plan.bytes.size());
    plan_bytes.Upload(plan.bytes.data());
    std::vector<float> slopes(heads);
    for (int h = 0; h < heads; ++h) slopes[h] = c.decay * std::exp2(-8.0f * (h + 1) / heads);
    DeviceBytes slope_bytes(slopes.size() * 4);
    slope_bytes.Upload(slopes.data());
    const size_t bytes = static_cast<size_t>(tokens) * heads * dim * 2;
    DeviceBytes q(bytes), k(bytes), v(bytes), dout(bytes), out(bytes), dq(bytes), dk(bytes),
        dv(bytes);
    DeviceBytes workspace(LightningBackwardWorkspaceBytes(plan, heads, dim, dim));
    for (DeviceBytes* x : {&q, &k, &v, &dout}) FillRandom(*x, 0.1f);
    LightningBackwardParams b;
    LightningForwardParams& f = b.forward;
    f.plan = ViewOf(plan, plan_bytes.data());
    f.num_heads = heads;
    f.head_dim = f.value_dim = dim;
    f.slopes = static_cast<const float*>(slope_bytes.data());
    f.q = q.data();
    f.k = k.data();
    f.v = v.data();
    f.out = out.data();
    f.q_stride = f.k_stride = f.v_stride = f.out_stride = int64_t{heads} * dim;
    f.workspace = b.workspace = workspace.data();
    b.dout = dout.data();
    b.dq = dq.data();
    b.dk = dk.data();
    b.dv = dv.data();
    b.dout_stride = b.dq_stride = b.dk_stride = b.dv_stride = f.q_stride;
    const double forward = MedianMs([&] { return LaunchLightningForward(f, nullptr); });
    const double backward = MedianMs([&] { return LaunchLightningBackward(b, nullptr); });
    f.portable = true;
    const double on_any = MedianMs([&] { return LaunchLightningForward(f, nullptr); });
    const double backward_on_any = MedianMs([&] { return LaunchLightningBackward(b, nullptr); });
    const auto rate = [&](double ms) { return static_cast<double>(tokens) / ms * 1e-3; };
    std::printf("%-16s %5d %4d %8d %10.3f %12.1f %8.1f %10.3f %12.1f %8.1f\n", c.name.c_str(),
                heads, dim, rows, forward, rate(forward), rate(on_any), backward, rate(backward),
                rate(backward_on_any));
    std::fflush(stdout);
  }
}

// Median microseconds of a launch, back to back on `sets` sets of memory in turn.
double MedianLaunchUs(int sets, const std::function<cudaError_t(int set)>& run) {
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "event");
  Check(cudaEventCreate(&end), "event");
  const int launches = std::max(sets, 16);
  std::vector<float> times;
  for (int repeat = 0; repeat < 8; ++repeat) {
    Check(cudaEventRecord(begin), "record");
    for (int i = 0; i < launches; ++i) Check(run(i % sets), "launch");
    Check(cudaEventRecord(end), "record");
    Check(cudaEventSynchronize(end), "run");
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (repeat > 0) times.push_back(ms);  // the first warms up
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e3 / launches;
}

// A step of decoding, in place on states that are in no cache: in all they are ten times as large
// as the L2. Bytes are those of the states, read and written. `copy` is the time of a plain copy of
// as many bytes, `chunked` that of the kernels for whole documents; `share` is of the bandwidth of
// the largest copy.
void BenchDecode() {
  constexpr int kHeads = 16, kDim = 128, kMostSequences = 256;
  constexpr size_t kStateBytes = size_t{4} * kHeads * kDim * kDim;  // of a sequence
  constexpr size_t kAllBytes = 2 * kMostSequences * kStateBytes;
  DeviceBytes all_states(kAllBytes);
  FillRandom(all_states, 1.0f);
  std::vector<float> slopes(kHeads);
  for (int h = 0; h < kHeads; ++h) slopes[h] = std::exp2(-8.0f * (h + 1) / kHeads);
  DeviceBytes slope_bytes(slopes.size() * 4);
  slope_bytes.Upload(slopes.data());
  const size_t row_bytes = size_t{kMostSequences} * kHeads * kDim * 2;
  DeviceBytes q(row_bytes), k(row_bytes), v(row_bytes), out(row_bytes);
  for (DeviceBytes* x : {&q, &k, &v}) FillRandom(*x, 1.0f);

  const auto states = [&](int64_t sequences, int set) {
    return static_cast<char*>(all_states.data()) +
           static_cast<size_t>(sequences) * kStateBytes * static_cast<size_t>(set);
  };
  // To the other half of all states.
  const auto copy_us = [&](int64_t sequences) {
    const int sets = static_cast<int>(2 * kMostSequences / sequences);
    return MedianLaunchUs(sets, [&](int set) {
      return cudaMemcpyAsync(states(sequences, (set + sets / 2) % sets), states(sequences, set),
                             static_cast<size_t>(sequences) * kStateBytes, cudaMemcpyDefault);
    });
  };
  const auto rate = [&](int64_t sequences, double us) {
    return 2.0 * static_cast<double>(sequences) * kStateBytes / us * 1e-3;
  };
  const double copy_rate = rate(kMostSequences, copy_us(kMostSequences));
  std::printf("# %-14s %5s %4s %9s %8s %8s %9s %9s\n", "case", "heads", "dim", "us", "GB/s",
              "share", "copy", "chunked");
  for (int64_t sequences = 1; sequences <= kMostSequences; sequences *= 2) {
    const int sets = static_cast<int>(2 * kMostSequences / sequences);
    LightningDecodeParams p;
    p.num_sequences = sequences;
    LightningForwardParams f;
    std::vector<int64_t> cu_seqlens;
    for (int64_t b = 0; b <= sequences; ++b) cu_seqlens.push_back(b);
    const LightningPlan plan =
        PlanLightningAttention(cu_seqlens.data(), sequences, 2 * kLightningChunk);
    DeviceBytes plan_bytes(plan.bytes.size());
    plan_bytes.Upload(plan.bytes.data());
    DeviceBytes workspace(LightningForwardWorkspaceBytes(plan, kHeads, kDim, kDim));
    f.plan = ViewOf(plan, plan_bytes.data());
    f.workspace = workspace.data();
    const auto set_operands = [&](auto& params) {
      params.num_heads = kHeads;
      params.head_dim = params.value_dim = kDim;
      params.slopes = static_cast<const float*>(slope_bytes.data());
      params.q = q.data();
      params.k = k.data();
      params.v = v.data();
      params.out = out.data();
      params.q_stride = params.k_stride = params.v_stride = params.out_stride = kHeads * kDim;
    };
    set_operands(p);
    set_operands(f);
    const auto set_states = [&](auto& params, int set) {
      params.final_state = reinterpret_cast<float*>(states(sequences, set));
      params.initial_state = params.final_state;
    };
    const double us = MedianLaunchUs(sets, [&](int set) {
      set_states(p, set);
      return LaunchLightningDecode(p, nullptr);
    });
    const double chunked = MedianLaunchUs(sets, [&](int set) {
      set_states(f, set);
      return LaunchLightningForward(f, nullptr);
    });
    std::printf("%-16lld %5d %4d %9.2f %8.0f %7.1f%% %9.2f %9.2f\n",
                static_cast<long long>(sequences), kHeads, kDim, us, rate(sequences, us),
                100.0 * rate(sequences, us) / copy_rate, copy_us(sequences), chunked);
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
    std::fprintf(stderr,
                 "usage: gpu_attention softmax|tasks|shards|lightning|decode|dump FOLDER\n");
    return 2;
  }
  return 0;
}
