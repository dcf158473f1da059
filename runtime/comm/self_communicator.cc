#include "runtime/comm/self_communicator.h"

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace evenkeel {
namespace {

void Copy(ConstTensorView from, TensorView to) {
  EK_CHECK(from.is_dense() && to.is_dense() && from.dtype == to.dtype &&
           from.num_elements() == to.num_elements())
      << from.shape.ToString() << " to " << to.shape.ToString();
  const int64_t bytes = from.num_elements() * SizeOf(from.dtype);
  if (bytes > 0) std::memmove(to.data, from.data, static_cast<size_t>(bytes));
}

class SelfCommunicator : public Communicator {
 public:
  explicit SelfCommunicator(std::string name) : Communicator(0, 1, std::move(name)) {}

  Work AllReduceAsync(TensorView data, ReduceOp, const std::string&) override {
    EK_CHECK(data.is_dense()) << data.shape.ToString();
    return Work();
  }

  Work BroadcastAsync(TensorView data, int root, const std::string&) override {
    EK_CHECK(data.is_dense() && root == 0) << "root " << root;
    return Work();
  }

  Work AllGatherAsync(ConstTensorView mine, TensorView all, absl::Span<const int64_t> rows,
                      const std::string&) override {
    EK_CHECK(rows.size() == 1) << rows.size() << " row counts on one rank";
    Copy(mine, all);
    return Work();
  }

  Work ReduceScatterAsync(ConstTensorView all, TensorView mine, absl::Span<const int64_t> rows,
                          ReduceOp, const std::string&) override {
    EK_CHECK(rows.size() == 1) << rows.size() << " row counts on one rank";
    Copy(all, mine);
    return Work();
  }

  Work AllToAllAsync(ConstTensorView send, absl::Span<const int64_t> send_rows, TensorView recv,
                     absl::Span<const int64_t> recv_rows, const std::string&) override {
    EK_CHECK(send_rows.size() == 1 && recv_rows.size() == 1 && send_rows[0] == recv_rows[0])
        << "row counts of one rank to itself differ";
    Copy(send, recv);
    return Work();
  }

  Work SendRecvAsync(absl::Span<const SendTo> sends, absl::Span<const ReceiveFrom> receives,
                     const std::string& label) override {
    if (sends.size() != receives.size()) {
      return Work(absl::FailedPreconditionError(
          absl::StrCat("SendRecv \"", label, "\": ", sends.size(),
                       " messages to this only rank itself, but ", receives.size(), " receives")));
    }
    for (size_t i = 0; i < sends.size(); ++i) {
      EK_CHECK(sends[i].peer == 0 && receives[i].peer == 0) << label;
      Copy(sends[i].data, receives[i].data);
    }
    return Work();
  }

  Work BarrierAsync(const std::string&) override { return Work(); }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int,
                                                      const std::string& name) override {
    std::unique_ptr<Communicator> part;
    if (color >= 0) part = std::make_unique<SelfCommunicator>(name);
    return part;
  }

  absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int> ranks,
                                                          const std::string& name) override {
    EK_CHECK(ranks.size() == 1 && ranks[0] == 0) << name << " of one rank";
    return std::make_unique<SelfCommunicator>(name);
  }

  void SetStep(int64_t) override {}

  [[noreturn]] void Abort(ExitCode code) override { std::_Exit(static_cast<int>(code)); }
};

}  // namespace

std::unique_ptr<Communicator> MakeSelfCommunicator() {
  return std::make_unique<SelfCommunicator>("self");
}

}  // namespace evenkeel
