// Device memory and bf16 numbers for the kernel tests.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace evenkeel {

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    Allocate();
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  // Filled with bytes of ones: a NaN in bf16 and in float32.
  explicit DeviceArray(size_t size) : size_(size) {
    Allocate();
    EXPECT_EQ(cudaMemset(data_, 0xff, size_ * sizeof(T)), cudaSuccess);
  }
  ~DeviceArray() { (void)cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Download() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  void Allocate() {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, (size_ + 1) * sizeof(T)), cudaSuccess);
    data_ = static_cast<T*>(data);
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

inline bool HasGpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// A bf16 number by its bits.
using Bits = uint16_t;
constexpr Bits kPoison = 0xffff;

inline double FromBits(Bits bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  static_assert(sizeof(value) == sizeof(word));
  __builtin_memcpy(&value, &word, sizeof(value));
  return value;
}

inline Bits ToBits(double value) {
  const __nv_bfloat16 rounded = __float2bfloat16(static_cast<float>(value));
  Bits bits;
  __builtin_memcpy(&bits, &rounded, sizeof(bits));
  return bits;
}

inline Bits RandomBits(std::mt19937& rng) {
  return ToBits(std::normal_distribution<double>(0.0, 1.0)(rng));
}

// Relative error in the 2-norm over the elements that a test has added. NaN never passes a bound.
class RelativeError {
 public:
  void Add(double got, double want) {
    error_ += (got - want) * (got - want);
    norm_ += want * want;
  }
  double value() const { return norm_ > 0.0 ? std::sqrt(error_ / norm_) : std::sqrt(error_); }

 private:
  double error_ = 0.0;
  double norm_ = 0.0;
};

}  // namespace evenkeel
