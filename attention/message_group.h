// The messages of one exchange of a server pass. Private to attention/.
#pragma once

#include <algorithm>
#include <vector>

#include "attention/server_pass.h"

namespace evenkeel {

// A group of messages, rows of several buffers, listed by rounds: MPI starts messages in the order
// of the list, and so no two ranks begin with the same one. Those between two ranks are of one
// round, and keep the order in which both have named them.
class MessageGroup {
 public:
  explicit MessageGroup(const ServerPassMode& mode) : mode_(mode) {}

  void Send(const std::vector<RowMessage>& messages, const TensorView& buffer) {
    for (const RowMessage& message : messages) {
      sends_.push_back({message.round, {message.peer, RowsOf(message, buffer)}});
    }
  }
  void Receive(const std::vector<RowMessage>& messages, const TensorView& buffer) {
    for (const RowMessage& message : messages) {
      receives_.push_back({message.round, {message.peer, RowsOf(message, buffer)}});
    }
  }
  Work Start(AxisComm* pool, const char* label) {
    if (pool == nullptr || (sends_.empty() && receives_.empty())) return Work();
    Work work = pool->SendRecvAsync(ByRounds(sends_), ByRounds(receives_), label);
    if (!mode_.overlaps) {
      pool->Wait(work);
      return Work();
    }
    return work;
  }

 private:
  template <typename Message>
  struct InRound {
    int round;
    Message message;
  };

  TensorView RowsOf(const RowMessage& message, const TensorView& buffer) const {
    if (mode_.signals) return buffer.Rows(message.begin, message.begin + 1).Columns(0, 1);
    return buffer.Rows(message.begin, message.begin + message.count);
  }

  template <typename Message>
  static std::vector<Message> ByRounds(std::vector<InRound<Message>>& messages) {
    std::stable_sort(messages.begin(), messages.end(),
                     [](const auto& a, const auto& b) { return a.round < b.round; });
    std::vector<Message> sorted;
    for (const InRound<Message>& entry : messages) sorted.push_back(entry.message);
    return sorted;
  }

  const ServerPassMode& mode_;
  std::vector<InRound<SendTo>> sends_;
  std::vector<InRound<ReceiveFrom>> receives_;
};

}  // namespace evenkeel
