#include "runtime/comm/call_watch.h"

#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"

namespace evenkeel {
namespace {

constexpr int64_t kSecond = 1000000000;

// A device on which calls start and end when the test says so.
class CallWatchTest : public testing::Test {
 protected:
  void Add(int64_t sequence, int stream) {
    WatchedCall call;
    call.text = absl::StrCat("AllReduce \"bucket ", sequence, "\" (1024 x f32) on comm", stream);
    call.place = "rank 1 of 4 (host node7, pid 314)";
    call.sequence = sequence;
    call.step = 17;
    call.stream = stream;
    State* state = &states_[{stream, sequence}];
    call.has_started = [state] { return ++state->num_asked, state->has_started; };
    call.has_ended = [state] { return ++state->num_asked, state->has_ended; };
    watch_.Add(std::move(call));
  }
  void Start(int64_t sequence, int stream) { states_[{stream, sequence}].has_started = true; }
  void End(int64_t sequence, int stream) { states_[{stream, sequence}].has_ended = true; }

  struct State {
    bool has_started = false;
    bool has_ended = false;
    int num_asked = 0;
  };
  std::map<std::pair<int, int64_t>, State> states_;
  CallWatch watch_{10.0};
};

TEST_F(CallWatchTest, NamesTheCallThatTakesTooLong) {
  Add(5, 0);
  Start(5, 0);
  EXPECT_EQ(watch_.FindOverdue(100 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.FindOverdue(110 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.FindOverdue(110 * kSecond + kSecond / 2),
            "AllReduce \"bucket 5\" (1024 x f32) on comm0 timed out after 10.5 s on rank 1 of 4 "
            "(host node7, pid 314) at step 17, call number 5");
  End(5, 0);
  EXPECT_EQ(watch_.FindOverdue(112 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.size(), 0);
}

TEST_F(CallWatchTest, TimeCountsFromTheStartOnTheDevice) {
  Add(1, 0);
  EXPECT_EQ(watch_.FindOverdue(1 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.FindOverdue(1000 * kSecond), std::nullopt);
  Start(1, 0);
  EXPECT_EQ(watch_.FindOverdue(2000 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.FindOverdue(2009 * kSecond), std::nullopt);
  EXPECT_TRUE(watch_.FindOverdue(2011 * kSecond).has_value());
}

TEST_F(CallWatchTest, ACallBehindASlowOneDoesNotInheritItsTime) {
  Add(1, 0);
  Add(2, 0);
  Start(1, 0);
  EXPECT_EQ(watch_.FindOverdue(1 * kSecond), std::nullopt);
  End(1, 0);
  Start(2, 0);
  EXPECT_EQ(watch_.FindOverdue(10 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.size(), 1);
  EXPECT_EQ(watch_.FindOverdue(19 * kSecond), std::nullopt);
  EXPECT_TRUE(watch_.FindOverdue(21 * kSecond).has_value());
}

TEST_F(CallWatchTest, StreamsAreWatchedApart) {
  Add(1, 0);
  Add(1, 1);
  Add(2, 0);
  Add(2, 1);
  Start(1, 0);
  Start(1, 1);
  EXPECT_EQ(watch_.FindOverdue(0 * kSecond + 1), std::nullopt);
  End(1, 1);
  Start(2, 1);
  EXPECT_EQ(watch_.FindOverdue(5 * kSecond), std::nullopt);
  EXPECT_EQ(watch_.size(), 3);
  EXPECT_EQ(watch_.FirstOf(0)->sequence, 1);
  EXPECT_EQ(watch_.FirstOf(1)->sequence, 2);
  EXPECT_EQ(watch_.FirstOf(2), nullptr);
  const auto overdue = watch_.FindOverdue(11 * kSecond);
  ASSERT_TRUE(overdue.has_value());
  EXPECT_NE(overdue->find("bucket 1\" (1024 x f32) on comm0"), std::string::npos) << *overdue;
}

TEST_F(CallWatchTest, AsksOnlyAboutTheFirstCallOfAStream) {
  for (int64_t i = 1; i <= 100; ++i) Add(i, 0);
  for (int64_t poll = 1; poll <= 5; ++poll) (void)watch_.FindOverdue(poll);
  EXPECT_EQ((states_[{0, 1}].num_asked), 10);
  EXPECT_EQ((states_[{0, 2}].num_asked), 0);
  for (int64_t i = 1; i <= 99; ++i) End(i, 0);
  (void)watch_.FindOverdue(6);
  EXPECT_EQ(watch_.size(), 1);
  EXPECT_EQ(watch_.FirstOf(0)->sequence, 100);
}

}  // namespace
}  // namespace evenkeel
