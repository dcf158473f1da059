// Finds calls on device streams that take too long. The host enqueues such a call and goes on, so
// nobody sits in a wait that could time out: a watchdog polls this list instead. Knows nothing of
// CUDA: how far the device is, the calls' own functions say.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

namespace evenkeel {

// A call that has been enqueued, as reports tell of it.
struct WatchedCall {
  std::string text;      // AllReduce "gradient bucket 3" (1024 x f32) on world
  std::string place;     // rank 1 of 4 (host node7, pid 314)
  int64_t sequence = 0;  // among the calls of its communicator on this rank, from 1
  int64_t step = 0;
  int stream = 0;  // calls of one stream run in the order in which they are added
  // Whether the device has reached the call, and is done with it.
  std::function<bool()> has_started, has_ended;
  // Who has not come to it, as CallBoard::DescribeAbsent says; may be null.
  std::function<std::string()> describe_absent;
};

// AllReduce "gradient bucket 3" (1024 x f32) on world timed out after 300.1 s on rank 1 of 4 (host
// node7, pid 314) at step 17, call number 5. It has not arrived: rank 3 ...
std::string DescribeTimeout(const WatchedCall& call, double waited_s);

// Calls under way, in the order in which they were enqueued. Not thread-safe.
class CallWatch {
 public:
  explicit CallWatch(double timeout_s) : timeout_s_(timeout_s) {}

  void Add(WatchedCall call) { calls_.push_back({std::move(call), 0}); }

  // Forgets the calls that have ended and returns the text of the first that has been under way for
  // longer than the time-out, if any. A call's time counts from the first poll that finds it
  // started: what the device computes before, however long, is not the peers' fault.
  std::optional<std::string> FindOverdue(int64_t now_ns);

  // Returns the call that the device is in, or comes to next, on `stream`; null if there is none.
  const WatchedCall* FirstOf(int stream) const;

  int64_t size() const { return static_cast<int64_t>(calls_.size()); }

 private:
  struct Entry {
    WatchedCall call;
    int64_t begin_ns;  // 0 until it is seen to have started
  };

  double timeout_s_;
  std::deque<Entry> calls_;
};

}  // namespace evenkeel
