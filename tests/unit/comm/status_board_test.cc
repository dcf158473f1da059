#include "runtime/comm/status_board.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

namespace evenkeel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Two zeroed rows, as two ranks would share them.
class StatusBoardTest : public testing::Test {
 protected:
  StatusBoardTest() {
    for (auto& row : rows_) {
      row.reset(static_cast<BoardRow*>(std::calloc(1, sizeof(BoardRow))));
    }
    const std::vector<BoardRow*> pointers = {rows_[0].get(), rows_[1].get()};
    first_ = std::make_unique<StatusBoard>(pointers, 0);
    second_ = std::make_unique<StatusBoard>(pointers, 1);
  }

  struct Free {
    void operator()(BoardRow* row) const { std::free(row); }
  };
  std::array<std::unique_ptr<BoardRow, Free>, 2> rows_;
  std::unique_ptr<StatusBoard> first_, second_;
};

TEST_F(StatusBoardTest, ReadersSeeRecentCalls) {
  EXPECT_EQ(second_->LastSequence(0, 3), 0);
  EXPECT_FALSE(second_->Find(0, 3, 1).has_value());
  for (int64_t s = 1; s <= kBoardHistory + 2; ++s) {
    first_->Post(3, {s, 10 + s, static_cast<uint64_t>(s * 7), 5, "AllReduce \"x\""});
  }
  const int64_t last = kBoardHistory + 2;
  EXPECT_EQ(second_->LastSequence(0, 3), last);
  EXPECT_EQ(second_->LastSequence(0, 4), 0);
  EXPECT_FALSE(second_->Find(0, 3, 2).has_value()) << "overwritten by call 18";
  EXPECT_FALSE(second_->Find(0, 3, last + 1).has_value());
  const auto call = second_->Find(0, 3, 3);
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->signature, 21u);
  EXPECT_EQ(call->step, 13);
  EXPECT_EQ(call->text, "AllReduce \"x\"");
}

TEST_F(StatusBoardTest, LongTextIsCutAndCommunicatorsBeyondTheBoardAreIgnored) {
  first_->Post(0, {1, 0, 0, 0, std::string(5000, 'a')});
  const auto call = second_->Find(0, 0, 1);
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->text, std::string(96, 'a'));
  first_->Post(kMaxBoardCommunicators, {1, 0, 0, 0, "x"});
  EXPECT_EQ(second_->LastSequence(0, kMaxBoardCommunicators), 0);
  EXPECT_FALSE(second_->Find(0, kMaxBoardCommunicators, 1).has_value());
}

TEST_F(StatusBoardTest, DescribesWhereARankIs) {
  EXPECT_THAT(second_->Describe(0, 0), HasSubstr("it has made no call here; it is not in a call"));
  first_->Post(0, {4, 17, 0, MonotonicNanoseconds() - 2500000000, "AllReduce \"x\""});
  first_->BeginWait({9, 17, 0, MonotonicNanoseconds(), "Barrier \"end\" on dp"});
  EXPECT_THAT(second_->Describe(0, 0),
              HasSubstr("its last call here was #4 AllReduce \"x\" at step 17, 2.5 s ago; it waits "
                        "in Barrier \"end\" on dp since 0.0 s ago"));
  first_->EndWait();
  EXPECT_THAT(second_->Describe(0, 0), Not(HasSubstr("waits")));
  EXPECT_FALSE(second_->IsDead(0));
}

TEST_F(StatusBoardTest, KnowsStoppedAndGoneProcesses) {
  const pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  rows_[0]->pid.store(child);
  EXPECT_FALSE(second_->IsDead(0));
  kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(second_->IsDead(0));
  EXPECT_THAT(second_->Describe(0, 0), HasSubstr("is stopped"));
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(second_->IsDead(0));
  EXPECT_THAT(second_->Describe(0, 0), HasSubstr("is gone"));
}

TEST_F(StatusBoardTest, ReadersNeverSeeATornCall) {
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int64_t i = 1; !stop.load(); ++i) {
      const char letter = static_cast<char>('a' + i % 26);
      first_->BeginWait({i, i, static_cast<uint64_t>(i), i, std::string(90, letter)});
    }
  });
  int num_seen = 0;  // calls, not reads: the two threads may share a processor
  int64_t last = 0;
  const int64_t deadline = MonotonicNanoseconds() + 5000000000;
  while (num_seen < 100 && MonotonicNanoseconds() < deadline) {
    const auto call = rows_[0]->waiting_for.Read();
    if (!call.has_value() || call->sequence == 0) continue;
    if (call->sequence != last) ++num_seen;
    last = call->sequence;
    EXPECT_EQ(call->step, call->sequence);
    EXPECT_EQ(call->signature, static_cast<uint64_t>(call->sequence));
    EXPECT_EQ(call->text, std::string(90, static_cast<char>('a' + call->sequence % 26)));
    if (HasFailure()) break;  // the writer must still be joined
  }
  stop.store(true);
  writer.join();
  EXPECT_GT(num_seen, 0);
}

}  // namespace
}  // namespace evenkeel
