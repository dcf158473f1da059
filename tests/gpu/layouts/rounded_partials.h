// What tensor parallelism in bf16 cannot help: ranks send partial sums of a product, each rounded
// to bf16, and their sum is rounded before the residual is added, where one GPU rounds once, at the
// end. Here the partial sums and sums of a float64 run on CPUs are rounded so, and nothing else.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/comm/communicator.h"

namespace evenkeel::testing_support {

// Of a number within float32's range.
inline float RoundToBf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = (word + 0x7fff + ((word >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &word, 4);
  return value;
}

// A communicator whose tensor-parallel part ("tp", divided from it) rounds what it reduces and
// scatters: the partial sums of activations and of their gradients. Float64.
class RoundedPartials : public Communicator {
 public:
  explicit RoundedPartials(Communicator& comm)
      : Communicator(comm.rank(), comm.size(), comm.name()), comm_(comm) {}
  explicit RoundedPartials(std::unique_ptr<Communicator> comm)
      : Communicator(comm->rank(), comm->size(), comm->name()),
        owned_(std::move(comm)),
        comm_(*owned_) {}

  Work AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) override {
    return comm_.AllReduceAsync(data, op, label);
  }
  Work BroadcastAsync(TensorView data, int root, const std::string& label) override {
    return comm_.BroadcastAsync(data, root, label);
  }
  Work AllGatherAsync(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                      const std::string& label) override {
    return comm_.AllGatherAsync(mine, all, rows, label);
  }
  Work ReduceScatterAsync(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                          ReduceOp op, const std::string& label) override {
    if (name() != "tp") return comm_.ReduceScatterAsync(all, mine, rows, op, label);
    const double* const partial = all.as<double>();
    std::vector<double> rounded(partial, partial + all.num_elements());
    Round(rounded.data(), all.num_elements());
    const absl::Status status = comm_.ReduceScatter(
        ConstTensorView(rounded.data(), DType::kF64, all.shape), mine, rows, op, label);
    Round(mine.as<double>(), mine.num_elements());
    return Work(status);
  }
  Work AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                     absl::Span<const int64_t> recv_rows, const std::string& label) override {
    return comm_.AllToAllAsync(send, send_rows, recv, recv_rows, label);
  }
  Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                     const std::string& label) override {
    return comm_.SendRecvAsync(sends, receives, label);
  }
  Work BarrierAsync(const std::string& label) override { return comm_.BarrierAsync(label); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key,
                                                      const std::string& name) override {
    auto part = comm_.Split(color, key, name);
    if (!part.ok() || *part == nullptr) return part;
    return std::make_unique<RoundedPartials>(*std::move(part));
  }
  absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int> ranks,
                                                          const std::string& name) override {
    return comm_.MakeGroup(ranks, name);
  }
  void SetInterrupt(std::function<bool()> is_interrupted) override {
    comm_.SetInterrupt(std::move(is_interrupted));
  }
  bool is_interrupted() const override { return comm_.is_interrupted(); }

  void SetStep(int64_t step) override { comm_.SetStep(step); }
  [[noreturn]] void Abort(ExitCode code) override {
    comm_.Abort(code);
    std::abort();
  }

 private:
  static void Round(double* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = RoundToBf16(static_cast<float>(x[i]));
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& comm_;
};

}  // namespace evenkeel::testing_support
