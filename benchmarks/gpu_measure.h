// Device memory with random numbers in it, and the time that a launch takes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace evenkeel {

inline void Check(cudaError_t error, const char* what) {
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
inline void FillRandom(DeviceBytes& target, float deviation) {
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

// Milliseconds of GPU time between two points of the default stream.
class Stopwatch {
 public:
  Stopwatch() {
    Check(cudaEventCreate(&begin_), "event");
    Check(cudaEventCreate(&end_), "event");
  }
  ~Stopwatch() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  float Time(const std::function<cudaError_t()>& run, int launches = 1) {
    Check(cudaEventRecord(begin_), "record");
    for (int i = 0; i < launches; ++i) Check(run(), "launch");
    Check(cudaEventRecord(end_), "record");
    Check(cudaEventSynchronize(end_), "run");
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin_, end_), "elapsed");
    return ms;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

inline double Median(std::vector<float> times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

inline double MedianMs(const std::function<cudaError_t()>& run) {
  static DeviceBytes flush(size_t{256} << 20);
  Stopwatch watch;
  std::vector<float> times;
  double total = 0.0;
  for (int i = 0; i < 60 && (i < 7 || total < 250.0); ++i) {
    Check(cudaMemsetAsync(flush.data(), 0, flush.size()), "flush");
    const float ms = watch.Time(run);
    if (i >= 2) times.push_back(ms);  // the first two warm up
    total += ms;
  }
  return Median(std::move(times));
}

// Of one launch on a GPU that has rested, at its highest clock, and of launches one after the other
// for half a second, after as long a time of them: then large kernels are at the power limit.
struct RestedAndSustained {
  double rested_ms, sustained_ms;
};

inline RestedAndSustained MeasureRestedAndSustained(const std::function<cudaError_t()>& run) {
  constexpr int kRested = 5;
  constexpr double kSustainedMs = 500.0;
  Stopwatch watch;
  (void)watch.Time(run);
  std::vector<float> times;
  for (int i = 0; i < kRested; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    times.push_back(watch.Time(run));
  }
  const double rested = Median(std::move(times));
  const int launches = std::max(1, static_cast<int>(kSustainedMs / rested));
  (void)watch.Time(run, launches);
  return {rested, watch.Time(run, launches) / launches};
}

}  // namespace evenkeel
