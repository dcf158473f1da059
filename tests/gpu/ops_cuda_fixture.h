// What the tests of the CUDA ops share: bf16 matrices with strided, poisoned rows, float64 copies
// of them for the CPU ops, and the bound on errors.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/philox.h"
#include "runtime/device/cuda_device.h"
#include "runtime/ops/gpu.h"
#include "runtime/ops/op_context.h"
#include "tests/gpu/device_array.h"

namespace evenkeel {

class OpsCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) GTEST_SKIP() << "no GPU";
  }

  MemoryTracker tracker_;
  ThreadPool pool_{1};
  Arena arena_ = *Arena::Create(int64_t{1} << 30, tracker_);
  OpContext context_{pool_, arena_, DType::kF64};
};

// For tests that call ops with tensors: a context on a GPU beside the CPU's.
class GpuOpsTest : public OpsCudaTest {
 protected:
  void SetUp() override {
    OpsCudaTest::SetUp();
    if (IsSkipped()) return;
    gpu_ = *OpenGpu(0);
    gpu_arena_.emplace(*Arena::CreateOnGpu(DeviceOf(*gpu_), int64_t{1} << 30, tracker_));
  }

  // Calls ops(context) and waits for what it enqueued. Its stream does not wait for the copies that
  // a DeviceArray makes, so this does.
  template <typename Ops>
  void OnGpu(const Ops& ops) {
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ops(OpContext{pool_, *gpu_arena_, DType::kBF16, gpu_.get()});
    EXPECT_TRUE(DeviceOf(*gpu_).Synchronize().ok());
    EXPECT_EQ(gpu_arena_->bytes_in_use(), 0) << "an op kept scratch memory";
  }

 private:
  std::shared_ptr<CudaOps> gpu_;
  std::optional<Arena> gpu_arena_;
};

// A dense tensor in device memory.
template <typename T>
TensorView OnDevice(const DeviceArray<T>& array, DType dtype, Shape shape) {
  return TensorView(array.data(), dtype, shape, Device::kCuda);
}

inline TensorView F64(std::vector<double>& data, Shape shape) {
  EXPECT_EQ(static_cast<int64_t>(data.size()), shape.num_elements());
  return TensorView(data.data(), DType::kF64, shape);
}

// bf16 [rows, columns] whose rows are `stride` apart, with poison between them.
struct Bf16Matrix {
  int64_t rows = 0, columns = 0, stride = 0;
  std::vector<Bits> data;

  static Bf16Matrix Poison(int64_t rows, int64_t columns, int64_t stride) {
    return {rows, columns, stride, std::vector<Bits>(static_cast<size_t>(rows * stride), kPoison)};
  }
  static Bf16Matrix Random(int64_t rows, int64_t columns, int64_t stride, uint64_t seed,
                           double scale = 1.0) {
    Bf16Matrix m = Poison(rows, columns, stride);
    const Philox random(seed, 5);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        m.at(r, c) = ToBits(scale * random.Normal(static_cast<uint64_t>(r * columns + c)));
      }
    }
    return m;
  }
  Bits& at(int64_t r, int64_t c) { return data[static_cast<size_t>(r * stride + c)]; }
  Bits at(int64_t r, int64_t c) const { return data[static_cast<size_t>(r * stride + c)]; }
  // Dense float64 copy of columns [begin, end).
  std::vector<double> Dense(int64_t begin, int64_t end) const {
    std::vector<double> values;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; ++c) values.push_back(FromBits(at(r, c)));
    }
    return values;
  }
  std::vector<double> Dense() const { return Dense(0, columns); }
};

inline std::vector<float> RandomFloats(int64_t n, uint64_t seed, double scale = 1.0) {
  const Philox random(seed, 6);
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(scale * random.Normal(i));
  }
  return values;
}

template <typename T>
std::vector<double> ToDouble(const std::vector<T>& values) {
  return std::vector<double>(values.begin(), values.end());
}

inline Bf16Matrix Downloaded(const DeviceArray<Bits>& device, Bf16Matrix shape) {
  shape.data = device.Download();
  return shape;
}

// `got` against the exact `want` (dense): its error is at most 1.5 times what rounding `want` to
// bf16 costs, which is less than any op of PyTorch that rounds its result; and nothing was written
// between the rows.
inline void ExpectRounded(const Bf16Matrix& got, const std::vector<double>& want,
                          const std::string& what) {
  ASSERT_EQ(static_cast<int64_t>(want.size()), got.rows * got.columns) << what;
  RelativeError error, rounding;
  for (int64_t r = 0; r < got.rows; ++r) {
    for (int64_t c = 0; c < got.columns; ++c) {
      const double exact = want[static_cast<size_t>(r * got.columns + c)];
      error.Add(FromBits(got.at(r, c)), exact);
      rounding.Add(FromBits(ToBits(exact)), exact);
    }
    for (int64_t c = got.columns; c < got.stride; ++c) {
      ASSERT_EQ(got.at(r, c), kPoison) << what << " wrote between rows at " << r << ", " << c;
    }
  }
  EXPECT_LE(error.value(), 1.5 * rounding.value() + 1e-7) << what;
}

// float32 results, relative in the 2-norm.
inline void ExpectFloats(const std::vector<float>& got, const std::vector<double>& want,
                         double bound, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  RelativeError error;
  for (size_t i = 0; i < got.size(); ++i) error.Add(static_cast<double>(got[i]), want[i]);
  EXPECT_LE(error.value(), bound) << what;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace evenkeel
