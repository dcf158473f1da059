// Device memory with random numbers in it, and the time that a launch takes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
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

inline double MedianMs(const std::function<cudaError_t()>& run) {
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

}  // namespace evenkeel
