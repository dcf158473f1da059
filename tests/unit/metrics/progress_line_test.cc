#include "runtime/metrics/progress_line.h"

#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace evenkeel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A stream to look at and a clock to turn.
struct Screen {
  std::ostringstream out;
  double now = 100;
  int width = 80;

  ProgressOptions Options(bool live) {
    ProgressOptions options;
    options.live = live;
    options.clock = [this] { return now; };
    options.width = [this] { return width; };
    return options;
  }
  std::string Take() {
    std::string text = out.str();
    out.str("");
    return text;
  }
};

StepReport Report(int64_t step, int64_t total) {
  return {.step = step, .total_steps = total, .loss = 2.314, .tokens_per_s = 12345};
}

TEST(ChooseProgress, FollowsTheTerminal) {
  struct Case {
    TerminalFacts facts;
    bool live;
    bool color;
  };
  const std::vector<Case> cases = {
      {{.stdout_is_tty = true, .term = "xterm"}, true, true},
      {{.stdout_is_tty = true, .term = "xterm", .no_color = "1"}, true, false},
      {{.stdout_is_tty = true, .term = "xterm", .no_color = ""}, true, true},
      {{.stdout_is_tty = true, .term = "dumb"}, false, false},
      {{.stdout_is_tty = true}, false, false},
      {{.stdout_is_tty = true, .term = "xterm", .progress = "plain"}, false, false},
      {{.stdout_is_tty = false, .term = "xterm"}, false, false},
      {{.stdout_is_tty = false, .term = "xterm", .progress = "live"}, true, true},
      {{.stdout_is_tty = false, .progress = "live"}, true, true},
      {{.stdout_is_tty = false, .term = "dumb", .progress = "live"}, false, false},
      {{.stdout_is_tty = false, .term = "xterm", .progress = "nonsense"}, false, false},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    const ProgressOptions options = ChooseProgress(cases[i].facts);
    EXPECT_EQ(options.live, cases[i].live) << i;
    EXPECT_EQ(options.color, cases[i].color) << i;
  }
}

TEST(ChooseProgress, TakesTheWidthFromColumns) {
  const auto width = [](std::optional<std::string> columns) {
    return ChooseProgress({.columns = std::move(columns)}).width();
  };
  EXPECT_EQ(width(std::nullopt), 80);
  EXPECT_EQ(width("132"), 132);
  EXPECT_EQ(width("0"), 80);
  EXPECT_EQ(width("-5"), 80);
  EXPECT_EQ(width("wide"), 80);
}

// Runs ReadTerminalFacts in a child like a rank whose mpirun (this process) writes to `mpirun_out`
// and which itself has a pseudo-terminal. Returns the columns of the live line, 0 if it is plain.
int ColumnsOfARank(int mpirun_out, int rank_out, bool under_mpirun) {
  const int saved = dup(STDOUT_FILENO);
  dup2(mpirun_out, STDOUT_FILENO);
  const pid_t child = fork();
  if (child == 0) {
    dup2(rank_out, STDOUT_FILENO);
    unsetenv("EVENKEEL_PROGRESS");
    unsetenv("OMPI_COMM_WORLD_RANK");
    setenv("TERM", "xterm", 1);
    setenv("COLUMNS", "33", 1);
    if (under_mpirun) setenv("OMPI_COMM_WORLD_RANK", "0", 1);
    const ProgressOptions options = ChooseProgress(ReadTerminalFacts());
    _exit(options.live ? options.width() : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  dup2(saved, STDOUT_FILENO);
  close(saved);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(ReadTerminalFacts, AsksMpirunsOutputInARank) {
  struct winsize wide = {}, narrow = {};
  wide.ws_col = 120;
  narrow.ws_col = 60;
  int wide_ends[2], narrow_ends[2], pipe_ends[2];
  ASSERT_EQ(openpty(&wide_ends[0], &wide_ends[1], nullptr, nullptr, &wide), 0);
  ASSERT_EQ(openpty(&narrow_ends[0], &narrow_ends[1], nullptr, nullptr, &narrow), 0);
  ASSERT_EQ(pipe(pipe_ends), 0);
  EXPECT_EQ(ColumnsOfARank(wide_ends[1], narrow_ends[1], true), 120);
  EXPECT_EQ(ColumnsOfARank(wide_ends[1], pipe_ends[1], true), 120);
  EXPECT_EQ(ColumnsOfARank(pipe_ends[1], narrow_ends[1], true), 0);
  EXPECT_EQ(ColumnsOfARank(wide_ends[1], narrow_ends[1], false), 60);
  EXPECT_EQ(ColumnsOfARank(wide_ends[1], pipe_ends[1], false), 0);
  for (int* ends : {wide_ends, narrow_ends, pipe_ends}) {
    close(ends[0]);
    close(ends[1]);
  }
}

TEST(ProgressLine, OverwritesOneLineOnATerminal) {
  Screen screen;
  {
    ProgressLine line(screen.Options(true), screen.out);
    screen.now += 5;
    line.Update(Report(1, 1000));
    EXPECT_EQ(screen.Take(),
              "\r\x1b[Kstep    1/1000 [                  ]    0%  loss 2.3140  12.3k tok/s  "
              "ETA 1h23m");
    screen.now += 0.05;  // too soon to draw again
    line.Update(Report(2, 1000));
    EXPECT_EQ(screen.Take(), "");
    screen.now += 0.95;  // one second for two steps since the first
    line.Update(Report(3, 1000));
    EXPECT_EQ(screen.Take(),
              "\r\x1b[Kstep    3/1000 [                  ]    0%  loss 2.3140  12.3k tok/s  "
              "ETA 8m19s");
    line.Message("saved step-3");
    EXPECT_EQ(screen.Take(),
              "\r\x1b[Ksaved step-3\n\r\x1b[Kstep    3/1000 [                  ]    0%  loss "
              "2.3140  12.3k tok/s  ETA 8m19s");
    line.Update(Report(1000, 1000));  // the last step is never too soon
    EXPECT_EQ(screen.Take(),
              "\r\x1b[Kstep 1000/1000 [==================]  100%  loss 2.3140  12.3k tok/s  "
              "ETA 0s");
  }
  EXPECT_EQ(screen.Take(), "\n");
}

TEST(ProgressLine, FinishShowsTheLastReportOnce) {
  Screen screen;
  ProgressLine line(screen.Options(true), screen.out);
  line.Update(Report(1, 10));
  line.Update(Report(2, 10));
  screen.Take();
  line.Finish();
  EXPECT_THAT(screen.Take(), HasSubstr("step  2/10"));
  line.Finish();
  EXPECT_EQ(screen.Take(), "");
  line.Message("after");
  EXPECT_EQ(screen.Take(), "after\n");
}

TEST(ProgressLine, FitsAnyWidth) {
  for (const int64_t total : {int64_t{0}, int64_t{10}, int64_t{123456789012}}) {
    for (int width = 0; width <= 200; ++width) {
      Screen screen;
      screen.width = width;
      ProgressLine line(screen.Options(true), screen.out);
      line.Update(Report(total / 2 + 1, total));
      const std::string text = screen.Take().substr(std::string("\r\x1b[K").size());
      EXPECT_LE(static_cast<int>(text.size()), std::max(width - 1, 0)) << text;
      EXPECT_EQ(text.find_first_of("\n\r"), std::string::npos);
      if (width <= 100) continue;
      EXPECT_THAT(text, HasSubstr("tok/s"));
      if (total > 0) {
        EXPECT_THAT(text, HasSubstr("%  loss"));
      }
    }
  }
}

TEST(ProgressLine, DropsTheRateBeforeTheTimeLeftBeforeTheLoss) {
  Screen screen;
  ProgressLine line(screen.Options(true), screen.out);
  screen.width = 40;
  line.Update(Report(5, 10));
  EXPECT_EQ(screen.Take(), "\r\x1b[Kstep  5/10  loss 2.3140  ETA --");
  screen.width = 28;
  screen.now += 1;
  line.Update(Report(6, 10));
  EXPECT_EQ(screen.Take(), "\r\x1b[Kstep  6/10  loss 2.3140");
  screen.width = 15;
  screen.now += 1;
  line.Update(Report(7, 10));
  EXPECT_EQ(screen.Take(), "\r\x1b[Kstep  7/10");
}

TEST(ProgressLine, UsesColorsOnlyIfAsked) {
  for (const bool color : {false, true}) {
    Screen screen;
    ProgressOptions options = screen.Options(true);
    options.color = color;
    ProgressLine line(options, screen.out);
    line.Update(Report(5, 10));
    const std::string text = screen.Take();
    EXPECT_EQ(text.find("\x1b[36m") != std::string::npos, color);
    EXPECT_EQ(text.find('m', text.rfind('\x1b')) != std::string::npos, color);
  }
}

TEST(ProgressLine, PrintsPlainLinesNowAndThenElsewhere) {
  Screen screen;
  ProgressLine line(screen.Options(false), screen.out);
  std::vector<int64_t> shown;
  for (int64_t step = 1; step <= 25; ++step) {
    screen.now += 1;
    StepReport report = Report(step, 25);
    report.grad_norm = 1.25;
    report.learning_rate = 3e-4;
    line.Update(report);
    const std::string text = screen.Take();
    if (text.empty()) continue;
    shown.push_back(step);
    EXPECT_THAT(text, Not(HasSubstr("\x1b")));
    EXPECT_THAT(text, Not(HasSubstr("\r")));
    if (step == 11) {
      EXPECT_EQ(text, "step 11/25  loss 2.3140  grad_norm 1.25  lr 0.0003  12.3k tok/s  ETA 14s\n");
    }
  }
  EXPECT_THAT(shown, ::testing::ElementsAre(1, 11, 21, 25));
  line.Finish();
  EXPECT_EQ(screen.Take(), "");
}

TEST(ProgressLine, PrintsPlainLinesAtMultiplesOfSteps) {
  Screen screen;
  ProgressOptions options = screen.Options(false);
  options.plain_every_steps = 4;
  ProgressLine line(options, screen.out);
  std::vector<int64_t> shown;
  for (int64_t step = 1; step <= 10; ++step) {
    line.Update(Report(step, 0));  // the number of steps is not known
    if (!screen.Take().empty()) shown.push_back(step);
  }
  EXPECT_THAT(shown, ::testing::ElementsAre(1, 4, 8));
  line.Finish();
  EXPECT_EQ(screen.Take(), "step 10  loss 2.3140  12.3k tok/s\n");
}

TEST(ProgressLine, EstimatesFromTheStepsOfThisProcess) {
  Screen screen;
  ProgressOptions options = screen.Options(false);
  options.start_step = 900;
  options.plain_every_steps = 1;
  ProgressLine line(options, screen.out);
  screen.now += 2;
  line.Update(Report(901, 1000));
  EXPECT_THAT(screen.Take(), HasSubstr("ETA 3m18s"));
  screen.now += 1;
  line.Update(Report(902, 1000));
  EXPECT_THAT(screen.Take(), HasSubstr("ETA 1m38s"));
}

TEST(ProgressLine, ShowsLossesThatAreNotNumbers) {
  Screen screen;
  ProgressLine line(screen.Options(false), screen.out);
  StepReport report = Report(1, 2);
  report.loss = NAN;
  line.Update(report);
  EXPECT_THAT(screen.Take(), HasSubstr("loss nan"));
  report = Report(2, 2);
  report.loss = 1e12;
  line.Update(report);
  EXPECT_THAT(screen.Take(), HasSubstr("loss 1.000e+12"));
}

}  // namespace
}  // namespace evenkeel
