#include "runtime/metrics/progress_line.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace evenkeel {
namespace {

constexpr int kDefaultWidth = 80;
constexpr int kMinBar = 8, kMaxBar = 28;  // columns between the brackets
constexpr char kEraseLine[] = "\r\x1b[K";
constexpr char kBarColor[] = "\x1b[36m", kBold[] = "\x1b[1m", kPlain[] = "\x1b[0m";

std::optional<std::string> Variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return value;
}

// Path of the terminal that shows what this process prints, or "" if a file or pipe takes it.
std::string FindTerminal() {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) {
    return isatty(STDOUT_FILENO) == 1 ? "/proc/self/fd/1" : "";
  }
  // Not opened before its name says that it is a terminal: opening a pipe or a file could disturb
  // whoever reads it.
  const std::string path = absl::StrCat("/proc/", getppid(), "/fd/1");
  std::error_code error;
  const std::string target = std::filesystem::read_symlink(path, error).string();
  const bool is_terminal =
      !error && (target.starts_with("/dev/pts/") || target.starts_with("/dev/tty"));
  return is_terminal ? path : "";
}

// Columns of the terminal `path`; 0 if it does not say.
int WidthOf(const std::string& path) {
  if (path.empty()) return 0;
  const int file = open(path.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return 0;
  struct winsize size = {};
  const bool known = ioctl(file, TIOCGWINSZ, &size) == 0;
  close(file);
  return known ? size.ws_col : 0;
}

std::string LossText(double loss) {
  if (!std::isfinite(loss)) return absl::StrFormat("loss %f", loss);
  return absl::StrFormat(std::abs(loss) < 10000 ? "loss %.4f" : "loss %.3e", loss);
}

std::string StepText(const StepReport& report) {
  if (report.total_steps <= 0) return absl::StrFormat("step %d", report.step);
  // As wide as the last step's, so that nothing to its right moves.
  const int digits = static_cast<int>(std::to_string(report.total_steps).size());
  return absl::StrFormat("step %*d/%d", digits, report.step, report.total_steps);
}

double Fraction(const StepReport& report) {
  if (report.total_steps <= 0) return 0;
  return std::clamp(static_cast<double>(report.step) / static_cast<double>(report.total_steps), 0.0,
                    1.0);
}

// Drops what matters least until the line fits; the bar takes the room that is left.
std::string LiveLine(const StepReport& report, double seconds_left, int width, bool color) {
  const std::string step = StepText(report), loss = LossText(report.loss);
  std::vector<std::string> details = {loss};
  // As wide as these two usually get, so that the bar keeps its length.
  const std::string rate = absl::StrFormat("%5s tok/s", FormatCount(report.tokens_per_s));
  const std::string eta = absl::StrFormat("ETA %-6s", FormatDuration(seconds_left));
  const bool bounded = report.total_steps > 0;
  if (bounded) details.push_back(eta);
  const auto columns = [&] {
    size_t sum = step.size();
    for (const std::string& detail : details) sum += 2 + detail.size();
    return static_cast<int>(sum);
  };
  details.insert(details.begin() + 1, rate);
  if (columns() > width) details.erase(details.begin() + 1);
  while (columns() > width && !details.empty()) details.pop_back();
  if (columns() > width) return step.substr(0, static_cast<size_t>(std::max(width, 0)));

  std::string line = step;
  const int bar = std::min(kMaxBar, width - columns() - 9);  // " [", "]", "  100%" around it
  if (bounded && bar >= kMinBar) {
    const int filled = static_cast<int>(Fraction(report) * bar);
    std::string done(static_cast<size_t>(filled), '=');
    if (filled > 0 && filled < bar) done.back() = '>';
    const std::string rest(static_cast<size_t>(bar - filled), ' ');
    absl::StrAppend(&line, " [", color ? kBarColor : "", done, color ? kPlain : "", rest, "]",
                    absl::StrFormat("  %3d%%", static_cast<int>(100 * Fraction(report))));
  }
  for (const std::string& detail : details) {
    const bool bold = color && &detail == &details.front();
    absl::StrAppend(&line, "  ", bold ? kBold : "", detail, bold ? kPlain : "");
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::string PlainLine(const StepReport& report, double seconds_left) {
  std::vector<std::string> parts = {StepText(report), LossText(report.loss)};
  if (report.grad_norm) parts.push_back(absl::StrFormat("grad_norm %.3g", *report.grad_norm));
  if (report.learning_rate) parts.push_back(absl::StrFormat("lr %.3g", *report.learning_rate));
  parts.push_back(FormatCount(report.tokens_per_s) + " tok/s");
  if (report.total_steps > 0) parts.push_back("ETA " + FormatDuration(seconds_left));
  return absl::StrJoin(parts, "  ");
}

}  // namespace

TerminalFacts ReadTerminalFacts() {
  const std::string terminal = FindTerminal();
  return {.stdout_is_tty = !terminal.empty(),
          .terminal = terminal,
          .term = Variable("TERM"),
          .no_color = Variable("NO_COLOR"),
          .columns = Variable("COLUMNS"),
          .progress = Variable("EVENKEEL_PROGRESS")};
}

ProgressOptions ChooseProgress(const TerminalFacts& facts) {
  ProgressOptions options;
  const bool has_cursor = facts.stdout_is_tty && !facts.term.value_or("").empty();
  options.live = facts.progress == "live" || (facts.progress != "plain" && has_cursor);
  if (facts.term == "dumb") options.live = false;
  options.color = options.live && facts.no_color.value_or("").empty();
  int columns = kDefaultWidth;
  if (int value; facts.columns && absl::SimpleAtoi(*facts.columns, &value) && value > 0) {
    columns = value;
  }
  options.width = [terminal = facts.terminal, columns] {
    const int width = WidthOf(terminal);
    return width > 0 ? width : columns;
  };
  options.clock = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  return options;
}

ProgressLine::ProgressLine(ProgressOptions options, std::ostream& out)
    : options_(std::move(options)),
      out_(out),
      start_time_(options_.clock()),
      start_step_(options_.start_step) {}

void ProgressLine::Update(const StepReport& report) {
  const double now = options_.clock();
  report_ = report;
  pending_ = true;
  const bool last = report.total_steps > 0 && report.step >= report.total_steps;
  const bool first = !shown_at_;
  bool due = first || last;
  if (options_.live) {
    due = due || now - *shown_at_ >= options_.live_every_seconds;
  } else if (options_.plain_every_steps > 0) {
    due = due || report.step % options_.plain_every_steps == 0;
  } else {
    due = due || now - *shown_at_ >= options_.plain_every_seconds;
  }
  if (due) Draw(now);
  if (!std::exchange(warmed_up_, true)) {
    // The first step allocates and warms caches up: what follows is estimated without it.
    start_time_ = now;
    start_step_ = report.step;
  }
}

double ProgressLine::SecondsLeft(double now) const {
  const double steps = static_cast<double>(report_.step - start_step_);
  const double left = static_cast<double>(report_.total_steps - report_.step);
  if (left <= 0) return 0;
  const double seconds = now - start_time_;
  return steps > 0 && seconds > 0 ? seconds / steps * left : -1;
}

void ProgressLine::Draw(double now) {
  const double left = SecondsLeft(now);
  if (options_.live) {
    // One column stays free: some terminals wrap as soon as the last one is written.
    out_ << kEraseLine << LiveLine(report_, left, options_.width() - 1, options_.color);
    drawn_ = true;
  } else {
    out_ << PlainLine(report_, left) << '\n';
  }
  out_.flush();
  shown_at_ = now;
  pending_ = false;
}

void ProgressLine::Message(const std::string& line) {
  if (!drawn_) {
    out_ << line << '\n';
    out_.flush();
    return;
  }
  out_ << kEraseLine << line << '\n';
  Draw(options_.clock());
}

void ProgressLine::Finish() {
  if (pending_) Draw(options_.clock());
  if (std::exchange(drawn_, false)) {
    out_ << '\n';
    out_.flush();
  }
}

}  // namespace evenkeel
