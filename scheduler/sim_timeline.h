// The engine of the simulator: ranks with a compute and a communication stream, messages between
// them, and when everything on them starts and ends. Pure.
//
// Streams are queues: what is put on one starts when what was put there before has ended and what
// it waits for is done. Nothing is decided while time passes, so no queue of events is needed:
// whoever puts work on in an order in which everything comes after what it waits for (any order in
// which a real run could issue it) gets exact times at once.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace evenkeel {

enum class SimWork : uint8_t { kLinear, kAttention, kCopy, kMessage };

// One piece of work, as recorded.
struct SimSpan {
  int rank = 0;
  bool is_communication = false;  // on the communication stream
  SimWork work = SimWork::kLinear;
  double ready = 0;  // what it waits for is done
  double start = 0;
  double end = 0;
  int peer = -1;         // messages: the rank at the other end
  bool is_send = false;  // messages: this rank sends
};

struct SimMessage {
  int32_t from = 0;
  int32_t to = 0;
  double seconds = 0;  // latency and bytes over the link's bandwidth
};

// Which of a rank's times is which.
struct SimBusy {
  double linear = 0;
  double attention = 0;
  double copy = 0;
  double message = 0;  // with something under way on the communication stream

  double compute() const { return linear + attention + copy; }
};

class SimTimeline {
 public:
  // `one_stream`: messages go through the compute stream, so that nothing overlaps.
  explicit SimTimeline(int num_ranks, bool one_stream = false);

  int num_ranks() const { return static_cast<int>(busy_.size()); }
  void RecordSpans() { records_ = true; }

  // Puts work on the rank's compute stream; returns when it ends. Work of no time waits for nothing
  // and returns `ready` or, if later, the end of what is there.
  double Compute(int rank, SimWork work, double ready, double seconds);

  // Messages in rounds, in each of which a rank sends at most one and receives at most one:
  // indices into `messages`. A rank takes part in a round when it is done with the round before and
  // with `ready[rank]`; a message starts when both its ends take part. Returns in `arrived` when
  // each rank has received all that is for it, 0 where that is nothing.
  void Exchange(absl::Span<const SimMessage> messages,
                absl::Span<const std::vector<int32_t>> rounds, absl::Span<const double> ready,
                std::vector<double>* arrived);

  double makespan() const;
  const std::vector<SimBusy>& busy() const { return busy_; }
  const std::vector<SimSpan>& spans() const { return spans_; }

 private:
  std::vector<double>& comm_free() { return one_stream_ ? compute_free_ : comm_free_; }

  bool one_stream_;
  bool records_ = false;
  std::vector<double> compute_free_, comm_free_;  // when the stream's last work ends
  std::vector<SimBusy> busy_;
  std::vector<SimSpan> spans_;
  std::vector<double> round_start_, round_end_;  // scratch of Exchange, by rank
};

}  // namespace evenkeel
