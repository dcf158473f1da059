#include "benchmarks/gpu_linear_attention.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "attention/kernels/cuda/lightning_attention_cuda.h"
#include "attention/kernels/cuda/lightning_decode_cuda.h"
#include "benchmarks/gpu_measure.h"

namespace evenkeel {
namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

}  // namespace evenkeel
