// Communicator over NCCL for device tensors. Internal to runtime/comm: made by NcclRuntime.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/comm/call_board.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/cuda/nccl_context.h"
#include "runtime/comm/cuda/nccl_handle.h"
#include "runtime/comm/cuda/nccl_work.h"
#include "runtime/comm/cuda/peer_copies.h"

namespace evenkeel {

class NcclCommunicator : public Communicator {
 public:
  // `bootstrap` connects the same ranks on the host; `owned` is null or owns it. Collective.
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(Communicator* bootstrap,
                                                              std::unique_ptr<Communicator> owned,
                                                              const std::string& name,
                                                              std::shared_ptr<NcclContext> context);
  ~NcclCommunicator() override;

  Work AllReduceAsync(TensorView data, ReduceOp op, const std::string& label) override;
  Work BroadcastAsync(TensorView data, int root, const std::string& label) override;
  Work AllGatherAsync(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                      const std::string& label) override;
  Work ReduceScatterAsync(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                          ReduceOp op, const std::string& label) override;
  Work AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                     absl::Span<const int64_t> recv_rows, const std::string& label) override;
  Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                     const std::string& label) override;
  Work BarrierAsync(const std::string& label) override;
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key,
                                                      const std::string& name) override;
  absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int> ranks,
                                                          const std::string& name) override;
  absl::Status ConnectPairs() override;
  absl::StatusOr<bool> UsePeerCopies() override {
    return UsePeerCopies(kPeerWindowBytes / kPeerSlots);
  }
  // With slots of that size, for tests.
  absl::StatusOr<bool> UsePeerCopies(int64_t slot_bytes);
  void SetInterrupt(std::function<bool()> is_interrupted) override {
    handle_->SetInterrupt(std::move(is_interrupted));
  }
  bool is_interrupted() const override { return handle_->is_interrupted(); }
  void SetStep(int64_t step) override { context_->watchdog().SetStep(step); }
  [[noreturn]] void Abort(ExitCode code) override;

 private:
  static constexpr int kPeerSlots = 2;

  NcclCommunicator(Communicator* bootstrap, std::unique_ptr<Communicator> owned,
                   const std::string& name, std::shared_ptr<NcclContext> context,
                   std::shared_ptr<NcclHandle> handle, std::shared_ptr<CallBoard> board,
                   int32_t* barrier_flag);

  // Enqueues what `calls` calls, between the work that the compute stream holds now and a mark to
  // wait for. `size` is "1024 x f32", or empty; `peers` null if the call is collective.
  Work Enqueue(const std::string& op, const std::string& label, const std::string& size,
               const NcclHandle::GroupCalls& calls, const std::vector<int>* peers = nullptr);
  // Notes the call on the status board, and lets its report say who has not come to it.
  void PostCall(const std::string& op, const std::string& label, const std::string& size,
                const std::vector<int>* peers, WatchedCall& call);
  absl::Status TryEnqueue(const WatchedCall& call, NcclCallEvents& events,
                          const NcclHandle::GroupCalls& calls);

  Communicator* bootstrap_;
  std::unique_ptr<Communicator> owned_bootstrap_;
  std::shared_ptr<NcclContext> context_;
  std::shared_ptr<NcclHandle> handle_;
  std::shared_ptr<CallBoard> board_;   // null if the bootstrap has none
  std::shared_ptr<PeerCopies> peers_;  // null unless UsePeerCopies made it
  std::shared_ptr<const NcclCallEvents> last_call_;
  std::string place_;
  int stream_number_;
  int64_t sequence_ = 0, collective_sequence_ = 0;
  int32_t* barrier_flag_;  // device memory; what is in it does not matter
};

}  // namespace evenkeel
