// Times the CUDA ops around attention on one GPU and prints how near each is to the bandwidth of a
// plain copy measured in the same run; benchmarks/gpu.sh builds, tests and runs it.
//
// Shapes of a 1.1 B model: 16384 tokens, width 2048, 16 heads of 128, feed-forward 5632. Random
// data, medians of back-to-back launches over two sets of tensors in turn, each larger than the
// caches. Bytes count every input read once and every output written once.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "runtime/ops/cuda/activation_cuda.h"
#include "runtime/ops/cuda/adamw_cuda.h"
#include "runtime/ops/cuda/cross_entropy_cuda.h"
#include "runtime/ops/cuda/embedding_cuda.h"
#include "runtime/ops/cuda/matmul_cuda.h"
#include "runtime/ops/cuda/norm_cuda.h"
#include "runtime/ops/cuda/position_cuda.h"
#include "runtime/ops/cuda/sum_cuda.h"
#include "runtime/ops/cuda/sum_rows_cuda.h"

namespace evenkeel {
namespace {

constexpr int64_t kTokens = 16384, kWidth = 2048, kHeads = 16, kHeadDim = 128, kFeed = 5632;

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class DeviceMemory {
 public:
  explicit DeviceMemory(int64_t bytes) : size_(static_cast<size_t>(bytes)) {
    Check(cudaMalloc(&data_, size_ + 16), "malloc");
  }
  ~DeviceMemory() { (void)cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// All tensors of one case, freed together.
class Pool {
 public:
  template <typename T>
  T* Empty(int64_t n) {
    memory_.push_back(std::make_unique<DeviceMemory>(n * static_cast<int64_t>(sizeof(T))));
    return memory_.back()->as<T>();
  }
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    T* p = Empty<T>(static_cast<int64_t>(values.size()));
    Check(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
    return p;
  }
  // Normal numbers: a random block, doubled on the device until the tensor is full.
  template <typename T>
  T* Random(int64_t n, float deviation, float mean = 0.0f) {
    constexpr int64_t kBlock = (1 << 20) + 7;
    static std::mt19937 rng(1);
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<T> block(static_cast<size_t>(std::min(n, kBlock)));
    for (T& x : block) x = static_cast<T>(normal(rng));
    T* p = Empty<T>(n);
    int64_t done = static_cast<int64_t>(block.size());
    Check(cudaMemcpy(p, block.data(), block.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
    for (; done < n; done *= 2) {
      const auto more = static_cast<size_t>(std::min(done, n - done));
      Check(cudaMemcpy(p + done, p, more * sizeof(T), cudaMemcpyDeviceToDevice), "copy");
    }
    return p;
  }
  __nv_bfloat16* Bf16(int64_t n) { return Random<__nv_bfloat16>(n, 1.0f); }

 private:
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
};

// Microseconds of a launch; run(set) launches on one of two sets of tensors.
double MedianUs(const std::function<cudaError_t(int set)>& run) {
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "event");
  Check(cudaEventCreate(&end), "event");
  constexpr int kLaunches = 12, kRepeats = 7;
  std::vector<float> times;
  for (int repeat = 0; repeat < kRepeats + 1; ++repeat) {
    Check(cudaEventRecord(begin), "record");
    for (int i = 0; i < kLaunches; ++i) Check(run(i % 2), "launch");
    Check(cudaEventRecord(end), "record");
    Check(cudaEventSynchronize(end), "run");
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (repeat > 0) times.push_back(ms);
  }
  (void)cudaEventDestroy(begin);
  (void)cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1000.0 / kLaunches;
}

double copy_gbs = 0.0;  // of this run

void Row(const std::string& name, int64_t bytes, const std::function<cudaError_t(int)>& run) {
  const double us = MedianUs(run);
  const double gbs = static_cast<double>(bytes) / us * 1e-3;
  std::printf("%-46s %9.1f %9.1f %8.0f %7.1f%%\n", name.c_str(), static_cast<double>(bytes) * 1e-6,
              us, gbs, 100.0 * gbs / copy_gbs);
  std::fflush(stdout);
}

void MeasureCopy() {
  Pool pool;
  constexpr int64_t kBytes = int64_t{1} << 29;
  char* from[2];
  char* to[2];
  for (int i = 0; i < 2; ++i) {
    from[i] = reinterpret_cast<char*>(pool.Bf16(kBytes / 2));
    to[i] = pool.Empty<char>(kBytes);
  }
  const double us = MedianUs([&](int s) {
    return cudaMemcpyAsync(to[s], from[s], kBytes, cudaMemcpyDeviceToDevice, nullptr);
  });
  copy_gbs = 2.0 * kBytes / us * 1e-3;
  std::printf("%-46s %9.1f %9.1f %8.0f %7.1f%%\n", "copy", 2.0 * kBytes * 1e-6, us, copy_gbs,
              100.0);
}

void Norms() {
  Pool pool;
  RmsNormForwardParams f[2];
  RmsNormBackwardParams b[2];
  const int64_t n = kTokens * kWidth;
  for (int s = 0; s < 2; ++s) {
    f[s].tokens = b[s].tokens = kTokens;
    f[s].columns = b[s].columns = kWidth;
    f[s].eps = b[s].eps = 1e-5f;
    f[s].x = b[s].x = pool.Bf16(n);
    f[s].delta = b[s].dy = pool.Bf16(n);
    f[s].gain = b[s].gain = pool.Bf16(kWidth);
    f[s].x_mid = pool.Empty<__nv_bfloat16>(n);
    f[s].y = b[s].dx = pool.Empty<__nv_bfloat16>(n);
    b[s].dresidual = pool.Bf16(n);
    b[s].dgain = pool.Random<float>(kWidth, 1.0f);
    b[s].workspace =
        pool.Empty<char>(static_cast<int64_t>(RmsNormBackwardWorkspaceBytes(kTokens, kWidth)));
    f[s].x_strides = f[s].delta_strides = f[s].x_mid_strides = f[s].y_strides = {kWidth, 0};
    f[s].gate_strides = b[s].gate_strides = b[s].dgate_strides = {kWidth, 0};
    b[s].x_strides = b[s].dy_strides = b[s].dresidual_strides = b[s].dx_strides = {kWidth, 0};
  }
  const auto forward = [&](int s) { return LaunchRmsNormForward(f[s], nullptr); };
  const auto backward = [&](int s) { return LaunchRmsNormBackward(b[s], nullptr); };
  Row("rmsnorm + residual forward", 8 * n, forward);
  Row("rmsnorm + residual backward with dgain", 8 * n, backward);
  for (int s = 0; s < 2; ++s) {
    f[s].gain = b[s].gain = nullptr;
    b[s].dgain = nullptr;
  }
  Row("srmsnorm + residual backward", 8 * n, backward);
  for (int s = 0; s < 2; ++s) {
    f[s].delta = nullptr;
    f[s].x_mid = nullptr;
    b[s].dresidual = nullptr;
  }
  Row("srmsnorm forward", 4 * n, forward);
  for (int s = 0; s < 2; ++s) {
    f[s].gate = b[s].gate = pool.Bf16(n);
    b[s].dgate = pool.Empty<__nv_bfloat16>(n);
  }
  Row("gate times norm forward", 6 * n, forward);
  Row("gate times norm backward", 10 * n, backward);
}

void Positions() {
  Pool pool;
  const int64_t n = kTokens * kHeads * kHeadDim;
  RopeParams r[2];
  LrpeParams f[2], b[2];
  ActivationParams a[2];
  std::vector<int64_t> positions(static_cast<size_t>(kTokens));
  for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int64_t>(t % 4000);
  for (int s = 0; s < 2; ++s) {
    r[s].tokens = f[s].tokens = a[s].tokens = kTokens;
    r[s].heads = 2 * kHeads;
    r[s].head_dim = f[s].head_dim = kHeadDim;
    r[s].cos = pool.Random<float>(kTokens * kHeadDim / 2, 0.5f);
    r[s].sin = pool.Random<float>(kTokens * kHeadDim / 2, 0.5f);
    r[s].x = pool.Bf16(3 * n);
    r[s].stride = 3 * kHeads * kHeadDim;
    a[s].columns = 2 * kHeads * kHeadDim;
    a[s].x = pool.Bf16(3 * n);
    a[s].y = pool.Empty<__nv_bfloat16>(2 * n);
    a[s].x_stride = r[s].stride;
    a[s].y_stride = 2 * kHeads * kHeadDim;
    f[s].heads = kHeads;
    f[s].positions = pool.Upload(positions);
    f[s].theta = pool.Random<float>(kHeads * kHeadDim, 1.0f);
    f[s].x = a[s].x;
    f[s].x_stride = a[s].x_stride;
    b[s] = f[s];
    f[s].y = a[s].y;
    f[s].y_stride = 2 * kHeads * kHeadDim;
    b[s].dy = pool.Bf16(2 * n);
    b[s].dy_stride = 2 * kHeads * kHeadDim;
    b[s].dx = pool.Empty<__nv_bfloat16>(n);
    b[s].dx_stride = kHeads * kHeadDim;
    b[s].dtheta = pool.Random<float>(kHeads * kHeadDim, 1.0f);
    b[s].workspace = pool.Empty<char>(
        static_cast<int64_t>(LrpeBackwardWorkspaceBytes(kTokens, kHeads, kHeadDim)));
  }
  Row("rope on q and k, in place", 8 * n + 4 * kTokens * kHeadDim,
      [&](int s) { return LaunchRope(r[s], nullptr); });
  Row("silu on q and k", 8 * n, [&](int s) { return LaunchActivation(a[s], nullptr); });
  Row("silu + lrpe forward", 6 * n, [&](int s) { return LaunchLrpeForward(f[s], nullptr); });
  Row("silu + lrpe backward with dtheta", 8 * n,
      [&](int s) { return LaunchLrpeBackward(b[s], nullptr); });
}

void GatedUnits() {
  Pool pool;
  const int64_t n = kTokens * kFeed;
  GatedUnitParams f[2], b[2];
  for (int s = 0; s < 2; ++s) {
    f[s].tokens = kTokens;
    f[s].columns = kFeed;
    f[s].pair = pool.Bf16(2 * n);
    f[s].pair_stride = f[s].dpair_stride = 2 * kFeed;
    f[s].h_stride = f[s].dh_stride = kFeed;
    b[s] = f[s];
    f[s].h = pool.Empty<__nv_bfloat16>(n);
    b[s].dh = pool.Bf16(n);
    b[s].dpair = pool.Empty<__nv_bfloat16>(2 * n);
  }
  const auto backward = [&](int s) { return LaunchGatedUnitBackward(b[s], nullptr); };
  Row("swiglu forward", 6 * n, [&](int s) { return LaunchGatedUnitForward(f[s], nullptr); });
  Row("swiglu backward", 10 * n, backward);
  for (int s = 0; s < 2; ++s) b[s].h = f[s].h;
  Row("swiglu backward and h again", 12 * n, backward);
  for (int s = 0; s < 2; ++s) f[s].unit = GatedUnit::kSglu;
  Row("sglu forward", 6 * n, [&](int s) { return LaunchGatedUnitForward(f[s], nullptr); });
}

void CrossEntropy(int64_t tokens, int64_t vocab, bool float_logits) {
  Pool pool;
  CrossEntropyParams p[2];
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < tokens; ++t) targets.push_back(static_cast<int32_t>(t * 7919 % vocab));
  for (int s = 0; s < 2; ++s) {
    p[s].tokens = tokens;
    p[s].vocab = p[s].stride = vocab;
    p[s].float_logits = float_logits;
    p[s].logits = float_logits ? static_cast<void*>(pool.Random<float>(tokens * vocab, 2.0f))
                               : static_cast<void*>(pool.Bf16(tokens * vocab));
    p[s].targets = pool.Upload(targets);
    p[s].scale = 1.0f;
    p[s].losses = pool.Empty<float>(tokens);
  }
  Row("cross-entropy and gradient, " + std::to_string(tokens) + " x " + std::to_string(vocab) +
          (float_logits ? " float32" : " bf16"),
      tokens * vocab * (float_logits ? 8 : 4),
      [&](int s) { return LaunchCrossEntropy(p[s], nullptr); });
}

void Embeddings(int64_t vocab) {
  Pool pool;
  // Ids by Zipf's law, as in text.
  std::mt19937 rng(2);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < kTokens; ++t) {
    ids.push_back(static_cast<int32_t>(
        std::min(std::pow(static_cast<double>(vocab), uniform(rng)), vocab - 1.0)));
  }
  const EmbeddingPlan plan = PlanEmbeddingBackward(ids.data(), kTokens);
  std::vector<int32_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  const auto distinct = std::unique(sorted.begin(), sorted.end()) - sorted.begin();
  EmbeddingForwardParams f[2];
  EmbeddingBackwardParams b[2];
  for (int s = 0; s < 2; ++s) {
    f[s].tokens = kTokens;
    f[s].columns = b[s].columns = kWidth;
    f[s].ids = pool.Upload(ids);
    f[s].table = pool.Bf16(vocab * kWidth);
    f[s].y = pool.Empty<__nv_bfloat16>(kTokens * kWidth);
    f[s].y_stride = b[s].dy_stride = kWidth;
    b[s].plan = ViewOf(plan, pool.Upload(plan.bytes));
    b[s].dy = pool.Bf16(kTokens * kWidth);
    b[s].dtable = pool.Random<float>(vocab * kWidth, 1.0f);
    b[s].workspace =
        pool.Empty<char>(static_cast<int64_t>(EmbeddingBackwardWorkspaceBytes(b[s].plan, kWidth)));
  }
  const int64_t n = kTokens * kWidth;
  Row("embedding forward, " + std::to_string(vocab), 2 * n + 2 * distinct * kWidth,
      [&](int s) { return LaunchEmbeddingForward(f[s], nullptr); });
  Row("embedding backward, " + std::to_string(distinct) + " distinct ids",
      2 * n + 8 * distinct * kWidth, [&](int s) { return LaunchEmbeddingBackward(b[s], nullptr); });
}

void Updates() {
  Pool pool;
  constexpr int64_t kElements = int64_t{1} << 26;
  std::vector<AdamWRange> ranges;
  for (int64_t at = 0; at < kElements; at += 4000000) {
    ranges.push_back({at, ranges.size() % 2 == 0 ? 0.1f : 0.0f});
  }
  AdamWParams p[2];
  SumParams sum[2];
  for (int s = 0; s < 2; ++s) {
    p[s].n = sum[s].n = kElements;
    p[s].weight = pool.Random<float>(kElements, 1.0f);
    p[s].exp_avg = pool.Random<float>(kElements, 0.1f);
    p[s].exp_avg_sq = pool.Random<float>(kElements, 0.1f, 1.0f);
    p[s].gradient = pool.Random<float>(kElements, 1.0f);
    p[s].copy = pool.Empty<__nv_bfloat16>(kElements);
    p[s].ranges = pool.Upload(ranges);
    p[s].num_ranges = static_cast<int64_t>(ranges.size());
    p[s].gradient_scale = pool.Upload(std::vector<float>{0.5f});
    p[s].lr = 1e-4;
    p[s].step = 10;
    sum[s].x = p[s].gradient;
    sum[s].squares = true;
    sum[s].sum = pool.Empty<double>(1);
    sum[s].workspace = pool.Empty<char>(static_cast<int64_t>(SumWorkspaceBytes(kElements)));
  }
  Row("sum of squares, 64 Mi", 4 * kElements, [&](int s) { return LaunchSum(sum[s], nullptr); });
  Row("adamw, 64 Mi", 30 * kElements, [&](int s) { return LaunchAdamW(p[s], nullptr); });
}

// Gradients of 8 key heads of 128, float32, that came in `rows` rows a segment from 1 to 4 servers;
// with `uneven` every 64th segment has 64 times as many.
void SumsOfRows(const char* name, int64_t rows, bool uneven) {
  Pool pool;
  constexpr int64_t kColumns = 1024, kTotal = 32768;
  std::vector<RowSegment> segments;
  std::vector<int64_t> terms;
  int64_t to = 0, from = 0;
  while (to < kTotal) {
    const auto i = static_cast<int64_t>(segments.size());
    const int64_t wanted = uneven && i % 64 == 0 ? 64 * rows : rows;
    const int64_t count = std::min(wanted, kTotal - to), num_terms = 1 + i % 4;
    segments.push_back({to, count, static_cast<int64_t>(terms.size()), num_terms});
    for (int64_t t = 0; t < num_terms; ++t, from += count) terms.push_back(from);
    to += count;
  }
  SumRowsParams p[2];
  for (int s = 0; s < 2; ++s) {
    p[s].float_x = true;
    p[s].x = pool.Random<float>(from * kColumns, 1.0f);
    p[s].y = pool.Empty<__nv_bfloat16>(kTotal * kColumns);
    p[s].columns = p[s].x_stride = p[s].y_stride = kColumns;
    p[s].segments = pool.Upload(segments);
    p[s].host_segments = segments.data();
    p[s].num_segments = static_cast<int64_t>(segments.size());
    p[s].terms = pool.Upload(terms);
  }
  Row(std::string("sums of rows, ") + std::to_string(segments.size()) + " " + name,
      (4 * from + 2 * kTotal) * kColumns, [&](int s) { return LaunchSumRows(p[s], nullptr); });
}

void Product(CudaMatMul& matmul, const char* name, int64_t m, int64_t n, int64_t k, Transpose ta,
             Transpose tb, bool float_out, float beta) {
  Pool pool;
  CudaMatMulParams p[2];
  for (int s = 0; s < 2; ++s) {
    p[s].m = m;
    p[s].n = n;
    p[s].k = k;
    p[s].a = pool.Bf16(m * k);
    p[s].b = pool.Bf16(k * n);
    p[s].transpose_a = ta;
    p[s].transpose_b = tb;
    p[s].beta = beta;
    p[s].float_out = float_out;
    p[s].out = float_out ? static_cast<void*>(pool.Random<float>(m * n, 1.0f))
                         : static_cast<void*>(pool.Bf16(m * n));
    p[s].a_stride = ta == Transpose::kYes ? m : k;
    p[s].b_stride = tb == Transpose::kYes ? k : n;
    p[s].out_stride = n;
  }
  const double us = MedianUs([&](int s) {
    const absl::Status status = matmul.Run(p[s], nullptr);
    if (status.ok()) return cudaSuccess;
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return cudaErrorUnknown;
  });
  std::printf("%-46s %9.1f us %8.0f TFLOP/s\n", name, us,
              2.0 * static_cast<double>(m * n) * static_cast<double>(k) / us * 1e-6);
}

void Products() {
  Pool pool;
  constexpr int64_t kWorkspace = 32 << 20;
  auto matmul = CudaMatMul::Create(pool.Empty<char>(kWorkspace), kWorkspace);
  if (!matmul.ok()) std::exit(1);
  Product(*matmul, "pair = x w^T", kTokens, 2 * kFeed, kWidth, Transpose::kNo, Transpose::kYes,
          false, 0.0f);
  Product(*matmul, "y += h w^T", kTokens, kWidth, kFeed, Transpose::kNo, Transpose::kYes, false,
          1.0f);
  Product(*matmul, "dx = dpair w", kTokens, kWidth, 2 * kFeed, Transpose::kNo, Transpose::kNo,
          false, 0.0f);
  Product(*matmul, "dw += dpair^T x, float32", 2 * kFeed, kWidth, kTokens, Transpose::kYes,
          Transpose::kNo, true, 1.0f);
}

int Main() {
  cudaDeviceProp device;
  Check(cudaGetDeviceProperties(&device, 0), "device");
  std::printf("%s\n%-46s %9s %9s %8s %8s\n", device.name, "op", "MB", "us", "GB/s", "of copy");
  MeasureCopy();
  Norms();
  Positions();
  GatedUnits();
  CrossEntropy(kTokens, 32000, false);
  CrossEntropy(kTokens / 4, 128256, false);
  CrossEntropy(kTokens / 4, 32000, true);
  CrossEntropy(kTokens / 8, 128256, true);
  Embeddings(32000);
  Embeddings(128256);
  Updates();
  SumsOfRows("long segments", 4096, false);
  SumsOfRows("segments of 128 rows", 128, false);
  SumsOfRows("segments of 4 rows", 4, false);
  SumsOfRows("single rows", 1, false);
  SumsOfRows("single and 64 rows", 1, true);
  Products();
  return 0;
}

}  // namespace
}  // namespace evenkeel

int main() {
  return evenkeel::Main();
}
