// A NCCL communicator and the MPI communicator of the same ranks, for tests.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/comm/cuda/nccl_runtime.h"
#include "runtime/comm/mpi_runtime.h"
#include "tests/gpu/device_array.h"

namespace evenkeel {

// Null on every rank if one of them has no GPU.
struct NcclRanks {
  static std::unique_ptr<NcclRanks> Create(double timeout_s,
                                           std::function<void(absl::Status)> on_failure = nullptr) {
    MpiRuntime mpi = *MpiRuntime::Create({.timeout_s = 60});
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    int64_t num_devices = count;
    EXPECT_TRUE(mpi.world()
                    .AllReduce(TensorView(&num_devices, DType::kI64, {1}), ReduceOp::kMin, "GPUs")
                    .ok());
    if (num_devices == 0) return nullptr;
    const bool shares_device = num_devices < mpi.local_size();
    NcclOptions options;
    options.device = shares_device ? 0 : mpi.local_rank();
    options.timeout_s = timeout_s;
    options.on_failure = std::move(on_failure);
    options.shares_device = shares_device;
    EXPECT_EQ(cudaSetDevice(options.device), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&options.compute_stream, cudaStreamNonBlocking),
              cudaSuccess);
    auto nccl = NcclRuntime::Create(mpi.world(), options);
    EXPECT_TRUE(nccl.ok()) << nccl.status();
    if (!nccl.ok()) std::exit(1);  // mpirun ends the others
    return std::unique_ptr<NcclRanks>(
        new NcclRanks{std::move(mpi), options.compute_stream, *std::move(nccl)});
  }

  MpiRuntime mpi;
  cudaStream_t stream;
  NcclRuntime nccl;  // last: it uses the others
};

// One set of communicators for all tests of a program.
class NcclTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { ranks_ = NcclRanks::Create(60); }
  static void TearDownTestSuite() { ranks_ = nullptr; }
  void SetUp() override {
    if (ranks_ == nullptr) GTEST_SKIP() << "no GPU";
  }

  static Communicator& mpi() { return ranks_->mpi.world(); }
  static Communicator& nccl() { return ranks_->nccl.world(); }
  static NcclRuntime& runtime() { return ranks_->nccl; }
  static cudaStream_t stream() { return ranks_->stream; }
  static int rank() { return mpi().rank(); }
  static int size() { return mpi().size(); }

  static void Synchronize() { ASSERT_EQ(cudaStreamSynchronize(stream()), cudaSuccess); }

  static inline std::unique_ptr<NcclRanks> ranks_;
};

template <typename T>
TensorView HostView(std::vector<T>& values, int64_t columns = 1) {
  return TensorView(values.data(), DTypeOf<T>::value,
                    {static_cast<int64_t>(values.size()) / columns, columns});
}

// The same numbers on the host and on the device, for one call each.
template <typename T>
class TwinTensor {
 public:
  explicit TwinTensor(std::vector<T> values, int64_t columns = 1)
      : host_(std::move(values)), device_(host_), columns_(columns) {
    // The copy of pageable memory may outlast the call, and no stream here waits for it.
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }

  TensorView host() { return HostView(host_, columns_); }
  TensorView device() const {
    return TensorView(device_.data(), DTypeOf<T>::value,
                      {static_cast<int64_t>(host_.size()) / columns_, columns_}, Device::kCuda);
  }
  // Returns what is on the device; its stream must be synchronised.
  std::vector<T> Download() const { return device_.Download(); }
  // Expects the same bits in both places.
  void ExpectEqual(const std::string& what) const {
    const std::vector<T> got = Download();
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], host_[i]) << what << ": element " << i << " of " << got.size();
    }
  }

 private:
  std::vector<T> host_;
  DeviceArray<T> device_;
  int64_t columns_;
};

}  // namespace evenkeel
