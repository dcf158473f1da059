// What a person watching a run sees: on a terminal one line that is written over and over,
// elsewhere (a log file, a pipe) a plain line now and then.
//
//   step 120/1000 [==>               ]  12%  loss 2.3140  12.3k tok/s  ETA 3m12s
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <ostream>
#include <string>

#include "runtime/metrics/human_format.h"

namespace evenkeel {

// What decides how progress is shown; unset variables are nullopt.
struct TerminalFacts {
  bool stdout_is_tty = false;
  std::string terminal = {};                           // a file to ask for its width; "" if none
  std::optional<std::string> term = std::nullopt;      // TERM
  std::optional<std::string> no_color = std::nullopt;  // NO_COLOR: no colours if set and not empty
  std::optional<std::string> columns = std::nullopt;   // COLUMNS
  std::optional<std::string> progress = std::nullopt;  // EVENKEEL_PROGRESS: live or plain
};

// Looks at this process's standard output; in a rank that mpirun started, at mpirun's: Open MPI
// hands rank 0 a pseudo-terminal of its own even when mpirun writes to a file or a pipe.
TerminalFacts ReadTerminalFacts();

struct ProgressOptions {
  bool live = false;
  bool color = false;
  int64_t start_step = 0;           // steps done before this process started (a resumed run)
  int64_t plain_every_steps = 0;    // plain lines at multiples of this many steps, or if 0 ...
  double plain_every_seconds = 10;  // ... when this much time passed since the last
  double live_every_seconds = 0.1;  // rewrite the live line at most this often
  std::function<int()> width;       // columns of the terminal
  std::function<double()> clock;    // seconds, of any origin
};

// Decides how to show progress: live on a terminal that can move its cursor, or where
// EVENKEEL_PROGRESS says so; width from the terminal, else COLUMNS, else 80.
ProgressOptions ChooseProgress(const TerminalFacts& facts);

struct StepReport {
  int64_t step = 0;         // steps done
  int64_t total_steps = 0;  // 0 if not known
  double loss = std::numeric_limits<double>::quiet_NaN();
  double tokens_per_s = 0;
  std::optional<double> grad_norm = std::nullopt;      // plain lines only
  std::optional<double> learning_rate = std::nullopt;  // plain lines only
};

// Use on one rank (normally rank 0) and one thread. Lines that others write to the same terminal
// while the live line is shown land behind it; pass what belongs to the run through Message().
class ProgressLine {
 public:
  // `out` (normally std::cout) must outlive this. Create it right before the first step: the time
  // left is estimated from the time since then.
  ProgressLine(ProgressOptions options, std::ostream& out);
  ~ProgressLine() { Finish(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Shows the state after a step, if it is time to. The last step is always shown.
  void Update(const StepReport& report);

  // Prints `line` above the live line.
  void Message(const std::string& line);

  // Shows the last report and leaves the cursor at the start of a new line. Idempotent; a later
  // Update() starts a new live line.
  void Finish();

 private:
  double SecondsLeft(double now) const;
  void Draw(double now);

  const ProgressOptions options_;
  std::ostream& out_;
  double start_time_;
  int64_t start_step_;
  bool warmed_up_ = false;
  StepReport report_;
  bool pending_ = false;  // report_ has not been shown
  bool drawn_ = false;    // the live line is on the screen
  std::optional<double> shown_at_;
};

}  // namespace evenkeel
