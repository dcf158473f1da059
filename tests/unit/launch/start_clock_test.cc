#include "launch/start_clock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace evenkeel {
namespace {

void Sleep(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

TEST(StartClock, TellsWhatTookLong) {
  StartClock clock;
  Sleep(120);
  clock.Lap("GPU");
  clock.Lap("nothing");
  Sleep(220);
  clock.Lap("weights");
  // A busy machine sleeps longer.
  EXPECT_THAT(clock.Text(), ::testing::MatchesRegex("[0-9.]+ s: GPU 0\\.[1-9], weights 0\\.[2-9]"));
}

TEST(StartClock, SaysLittleOfAQuickStart) {
  StartClock clock;
  clock.Lap("MPI");
  EXPECT_EQ(clock.Text(), "0.0 s");
}

}  // namespace
}  // namespace evenkeel
