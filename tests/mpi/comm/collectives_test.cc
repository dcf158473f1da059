// Every collective against values known in closed form. All sums are of small integers, exact in
// every type, so equality is demanded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "runtime/base/philox.h"
#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

class Collectives : public testing::Test {
 protected:
  Collectives() : runtime_(*MpiRuntime::Create({.timeout_s = 20})), comm_(runtime_.world()) {}

  MpiRuntime runtime_;
  Communicator& comm_;
};

template <typename T>
TensorView View(std::vector<T>& values) {
  return TensorView(values.data(), DTypeOf<T>::value, {static_cast<int64_t>(values.size())});
}

template <typename T>
TensorView View(std::vector<T>& values, int64_t columns) {
  return TensorView(values.data(), DTypeOf<T>::value,
                    {static_cast<int64_t>(values.size()) / columns, columns});
}

constexpr int64_t kSizes[] = {0, 1, 2, 3, 7, 64, 1009, 65537, 300007};

template <typename T>
void CheckAllReduce(Communicator& comm) {
  const int n = comm.size();
  for (const int64_t size : kSizes) {
    std::vector<T> sum(static_cast<size_t>(size)), max, min;
    for (int64_t i = 0; i < size; ++i) {
      sum[static_cast<size_t>(i)] = static_cast<T>(i % 100 + 10 * comm.rank());
    }
    max = min = sum;
    ASSERT_TRUE(comm.AllReduce(View(sum), ReduceOp::kSum, "sum").ok());
    ASSERT_TRUE(comm.AllReduce(View(max), ReduceOp::kMax, "max").ok());
    ASSERT_TRUE(comm.AllReduce(View(min), ReduceOp::kMin, "min").ok());
    for (int64_t i = 0; i < size; ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(sum[at], static_cast<T>(n * (i % 100) + 5 * n * (n - 1))) << size << " " << i;
      ASSERT_EQ(max[at], static_cast<T>(i % 100 + 10 * (n - 1)));
      ASSERT_EQ(min[at], static_cast<T>(i % 100));
    }
  }
}

TEST_F(Collectives, AllReduce) {
  CheckAllReduce<float>(comm_);
  CheckAllReduce<double>(comm_);
  CheckAllReduce<int32_t>(comm_);
  CheckAllReduce<int64_t>(comm_);
}

TEST_F(Collectives, AllReduceIsBitIdenticalOnAllRanksAndInEveryRun) {
  for (const int64_t size : kSizes) {
    const Philox random(5, static_cast<uint64_t>(comm_.rank()));
    std::vector<float> values(static_cast<size_t>(size));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(random.Normal(i) * std::exp(8 * random.Normal(~i)));
    }
    std::vector<float> first = values;
    ASSERT_TRUE(comm_.AllReduce(View(first), ReduceOp::kSum, "first").ok());
    for (int run = 0; run < 3; ++run) {
      std::vector<float> again = values;
      ASSERT_TRUE(comm_.AllReduce(View(again), ReduceOp::kSum, "again").ok());
      ASSERT_TRUE(first.empty() ||
                  std::memcmp(first.data(), again.data(), first.size() * sizeof(float)) == 0);
    }
    std::vector<float> of_root = first;
    ASSERT_TRUE(comm_.Broadcast(View(of_root), comm_.size() - 1, "compare").ok());
    ASSERT_TRUE(first.empty() ||
                std::memcmp(first.data(), of_root.data(), first.size() * sizeof(float)) == 0);
  }
}

TEST_F(Collectives, NotANumberSurvivesASum) {
  std::vector<double> value = {comm_.rank() == comm_.size() - 1 ? std::nan("") : 1.0};
  ASSERT_TRUE(comm_.AllReduce(View(value), ReduceOp::kSum, "nan").ok());
  EXPECT_TRUE(std::isnan(value[0]));
}

TEST_F(Collectives, BroadcastFromEachRoot) {
  for (int root = 0; root < comm_.size(); ++root) {
    for (const int64_t size : kSizes) {
      std::vector<int64_t> values(static_cast<size_t>(size), comm_.rank());
      ASSERT_TRUE(comm_.Broadcast(View(values), root, "b").ok());
      EXPECT_THAT(values, testing::Each(root));
    }
  }
}

TEST_F(Collectives, AllGatherOfUnequalRowsInAndOutOfPlace) {
  for (const int64_t columns : {1, 3}) {
    // Rank r has r rows, and the last one none: sizes 0, 1, 2, ..., 0.
    std::vector<int64_t> rows(static_cast<size_t>(comm_.size()));
    std::iota(rows.begin(), rows.end(), 0);
    rows.back() = 0;
    std::vector<double> expected;
    std::vector<int64_t> begins;
    for (int r = 0; r < comm_.size(); ++r) {
      begins.push_back(static_cast<int64_t>(expected.size()) / columns);
      expected.insert(expected.end(), static_cast<size_t>(rows[static_cast<size_t>(r)] * columns),
                      r + 0.5);
    }
    const auto me = static_cast<size_t>(comm_.rank());
    std::vector<double> mine(static_cast<size_t>(rows[me] * columns), comm_.rank() + 0.5);
    std::vector<double> all(expected.size(), -1);
    ASSERT_TRUE(comm_.AllGather(View(mine, columns), View(all, columns), rows, "rows").ok());
    EXPECT_EQ(all, expected);

    std::vector<double> in_place(expected.size(), -1);
    TensorView place = View(in_place, columns).Rows(begins[me], begins[me] + rows[me]);
    std::copy(mine.begin(), mine.end(), static_cast<double*>(place.data));
    ASSERT_TRUE(comm_.AllGather(place, View(in_place, columns), rows, "in place").ok());
    EXPECT_EQ(in_place, expected);
  }
}

TEST_F(Collectives, AllGatherMovesBf16) {
  std::vector<uint16_t> mine = {static_cast<uint16_t>(comm_.rank()), 7};
  std::vector<uint16_t> all(2 * static_cast<size_t>(comm_.size()));
  ASSERT_TRUE(comm_
                  .AllGather(TensorView(mine.data(), DType::kBF16, {1, 2}),
                             TensorView(all.data(), DType::kBF16, {comm_.size(), 2}), "bf16")
                  .ok());
  for (size_t r = 0; r < static_cast<size_t>(comm_.size()); ++r) {
    EXPECT_EQ(all[2 * r], r);
    EXPECT_EQ(all[2 * r + 1], 7);
  }
}

TEST_F(Collectives, ReduceScatterOfUnequalRows) {
  const int n = comm_.size();
  for (const int64_t columns : {1, 5}) {
    std::vector<int64_t> rows;
    int64_t total = 0, begin = 0;
    for (int r = 0; r < n; ++r) {
      rows.push_back(r == 1 ? 0 : 3 + 1000 * r);
      if (r < comm_.rank()) begin += rows.back();
      total += rows.back();
    }
    std::vector<float> all(static_cast<size_t>(total * columns));
    for (size_t i = 0; i < all.size(); ++i)
      all[i] = static_cast<float>(i % 1000) + 2.f * comm_.rank();
    std::vector<float> mine(static_cast<size_t>(rows[static_cast<size_t>(comm_.rank())] * columns));
    ASSERT_TRUE(
        comm_.ReduceScatter(View(all, columns), View(mine, columns), rows, ReduceOp::kSum, "rs")
            .ok());
    for (size_t i = 0; i < mine.size(); ++i) {
      const size_t global = i + static_cast<size_t>(begin * columns);
      ASSERT_EQ(mine[i], static_cast<float>(n) * static_cast<float>(global % 1000) +
                             static_cast<float>(n * (n - 1)));
    }
  }
}

TEST_F(Collectives, AllToAllWithCounts) {
  const int n = comm_.size(), me = comm_.rank();
  for (const int64_t columns : {1, 2}) {
    // a sends (a + 2 b) mod 4 rows to b, filled with 10 a + b.
    std::vector<int64_t> send_rows, recv_rows;
    std::vector<int32_t> send, expected;
    for (int peer = 0; peer < n; ++peer) {
      send_rows.push_back((me + 2 * peer) % 4);
      recv_rows.push_back((peer + 2 * me) % 4);
      send.insert(send.end(), static_cast<size_t>(send_rows.back() * columns), 10 * me + peer);
      expected.insert(expected.end(), static_cast<size_t>(recv_rows.back() * columns),
                      10 * peer + me);
    }
    std::vector<int32_t> recv(expected.size(), -1);
    ASSERT_TRUE(
        comm_.AllToAll(View(send, columns), send_rows, View(recv, columns), recv_rows, "a2a").ok());
    EXPECT_EQ(recv, expected);
  }
}

// An empty tensor may lie where the other one of the call begins: neighbours in an arena do. Open
// MPI takes equal addresses for MPI_IN_PLACE, so they must not reach it.
TEST_F(Collectives, AnEmptyTensorMayLieWhereTheOtherOneBegins) {
  const int n = comm_.size(), me = comm_.rank();
  const auto at = static_cast<size_t>(me);
  constexpr int64_t kColumns = 3;
  // First the even ranks send alone, then the odd ones; and the other way round they receive.
  for (const int parity : {0, 1}) {
    const auto is_source = [parity](int rank) { return rank % 2 == parity; };
    std::vector<int64_t> rows, none(static_cast<size_t>(n), 0);
    for (int r = 0; r < n; ++r) rows.push_back(is_source(r) ? 2 + r : 0);
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});

    // All to all: sources send one row to every other rank, and receive nothing. Rank by rank,
    // whoever sends or receives nothing has the address of what it does receive or send.
    std::vector<int64_t> send_rows(none), recv_rows(none);
    for (int peer = 0; peer < n; ++peer) {
      if (is_source(me) && !is_source(peer)) send_rows[static_cast<size_t>(peer)] = 1;
      if (!is_source(me) && is_source(peer)) recv_rows[static_cast<size_t>(peer)] = 1;
    }
    const int64_t sent = std::accumulate(send_rows.begin(), send_rows.end(), int64_t{0});
    const int64_t received = std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0});
    std::vector<double> buffer(static_cast<size_t>((sent + received) * kColumns), me);
    ASSERT_TRUE(comm_
                    .AllToAll(TensorView(buffer.data(), DType::kF64, {sent, kColumns}), send_rows,
                              TensorView(buffer.data(), DType::kF64, {received, kColumns}),
                              recv_rows, "one is empty")
                    .ok());
    std::vector<double> expected(static_cast<size_t>(sent * kColumns), me);
    for (int peer = 0; peer < n; ++peer) {
      if (recv_rows[static_cast<size_t>(peer)] > 0) expected.insert(expected.end(), kColumns, peer);
    }
    EXPECT_EQ(buffer, expected);

    // All-gather: who has no rows passes the address of all.
    std::vector<double> mine(static_cast<size_t>(rows[at] * kColumns), me + 0.5);
    std::vector<double> all(static_cast<size_t>(total * kColumns), -1), gathered;
    for (int r = 0; r < n; ++r) {
      gathered.insert(gathered.end(), static_cast<size_t>(rows[static_cast<size_t>(r)] * kColumns),
                      r + 0.5);
    }
    double* const from = mine.empty() ? all.data() : mine.data();
    ASSERT_TRUE(comm_
                    .AllGather(TensorView(from, DType::kF64, {rows[at], kColumns}),
                               View(all, kColumns), rows, "nothing of mine")
                    .ok());
    EXPECT_EQ(all, gathered);

    // Reduce-scatter: who gets no rows passes the address of all.
    std::vector<double> terms(static_cast<size_t>(total * kColumns)), sums(mine.size(), -1);
    for (size_t i = 0; i < terms.size(); ++i) terms[i] = static_cast<double>(i) + 1000 * me;
    const std::vector<double> untouched = terms;
    double* const to = sums.empty() ? terms.data() : sums.data();
    ASSERT_TRUE(comm_
                    .ReduceScatter(View(terms, kColumns),
                                   TensorView(to, DType::kF64, {rows[at], kColumns}), rows,
                                   ReduceOp::kSum, "nothing for me")
                    .ok());
    EXPECT_EQ(terms, untouched);
    const int64_t begin = std::accumulate(rows.begin(), rows.begin() + me, int64_t{0});
    for (size_t i = 0; i < sums.size(); ++i) {
      const double element = static_cast<double>(begin * kColumns) + static_cast<double>(i);
      ASSERT_EQ(sums[i], n * element + 500 * n * (n - 1));
    }
  }
}

TEST_F(Collectives, SendRecvGroups) {
  const int n = comm_.size(), me = comm_.rank();
  // To every rank, itself too: an empty message, a small and a large one.
  std::vector<std::vector<float>> outgoing, incoming;
  std::vector<SendTo> sends;
  std::vector<ReceiveFrom> receives;
  for (int peer = 0; peer < n; ++peer) {
    for (const size_t size : {size_t{0}, size_t{3}, size_t{100003}}) {
      outgoing.emplace_back(size,
                            static_cast<float>(100 * me + peer) + static_cast<float>(size % 2) / 2);
      incoming.emplace_back(size, -1.f);
    }
  }
  for (size_t i = 0; i < outgoing.size(); ++i) {
    sends.push_back({static_cast<int>(i / 3), View(outgoing[i])});
    receives.push_back({static_cast<int>(i / 3), View(incoming[i])});
  }
  ASSERT_TRUE(comm_.SendRecv(sends, receives, "all pairs").ok());
  for (size_t i = 0; i < incoming.size(); ++i) {
    const float expected = static_cast<float>(100 * static_cast<int>(i / 3) + me) +
                           static_cast<float>(incoming[i].size() % 2) / 2;
    EXPECT_THAT(incoming[i], testing::Each(expected));
  }
  EXPECT_TRUE(comm_.SendRecv({}, {}, "nothing").ok());
}

TEST_F(Collectives, MessagesOfTheWrongSizeAreNamed) {
  if (comm_.size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto pair = *comm_.Split(comm_.rank() < 2 ? 0 : -1, 0, "pair");
  if (pair == nullptr) return;
  std::vector<float> values(10);
  if (pair->rank() == 0) {
    EXPECT_TRUE(pair->SendRecv({{1, View(values)}}, {}, "short").ok());
  } else {
    std::vector<float> expected(11);
    const absl::Status status = pair->SendRecv({}, {{0, View(expected)}}, "short");
    EXPECT_EQ(status.message(),
              "SendRecv \"short\" on pair: rank 0 sent 40 bytes to rank 1, which expects 44");
  }
}

TEST_F(Collectives, SplitByColorAndKey) {
  const int n = comm_.size(), me = comm_.rank();
  // Even and odd ranks, each in reverse order.
  const auto part = *comm_.Split(me % 2, -me, me % 2 == 0 ? "even" : "odd");
  ASSERT_NE(part, nullptr);
  EXPECT_EQ(part->name(), me % 2 == 0 ? "even" : "odd");
  EXPECT_EQ(part->size(), (n - me % 2 + 1) / 2);
  EXPECT_EQ(part->rank(), part->size() - 1 - me / 2);
  std::vector<int64_t> value = {me};
  ASSERT_TRUE(part->AllReduce(View(value), ReduceOp::kMax, "largest").ok());
  EXPECT_EQ(value[0], (n - 1 - me % 2) / 2 * 2 + me % 2);
  // Some ranks in no group; then a split of a split.
  const auto first = *comm_.Split(me == 0 ? 0 : -1, 0, "first");
  EXPECT_EQ(first != nullptr, me == 0);
  const auto alone = *part->Split(part->rank(), 0, "alone");
  EXPECT_EQ(alone->size(), 1);
  EXPECT_TRUE(alone->Barrier("alone").ok());
}

TEST_F(Collectives, ManyCallsInFlight) {
  std::vector<std::vector<double>> buckets;
  std::vector<Work> works;
  for (size_t i = 0; i < 20; ++i) buckets.emplace_back(1 + 997 * i, static_cast<double>(i + 1));
  for (size_t i = 0; i < buckets.size(); ++i) {
    works.push_back(
        comm_.AllReduceAsync(View(buckets[i]), ReduceOp::kSum, "bucket " + std::to_string(i)));
  }
  int num_polls = 0;
  while (!works.back().Test() && num_polls < 100000000) ++num_polls;
  for (size_t i = works.size(); i-- > 0;) {  // waited for out of order
    EXPECT_TRUE(works[i].Wait().ok());
    EXPECT_TRUE(works[i].Test());
    EXPECT_TRUE(works[i].Wait().ok()) << "waiting again gives the same outcome";
  }
  for (size_t i = 0; i < buckets.size(); ++i) {
    EXPECT_THAT(buckets[i], testing::Each(static_cast<double>(i + 1) * comm_.size()));
  }
}

TEST_F(Collectives, DroppedWorkIsCompleted) {
  std::vector<double> values(100000, 1.0);
  { const Work work = comm_.AllReduceAsync(View(values), ReduceOp::kSum, "dropped"); }
  EXPECT_THAT(values, testing::Each(comm_.size()));
}

TEST_F(Collectives, KnowsItsPlaceOnTheHost) {
  EXPECT_EQ(runtime_.local_rank(), comm_.rank());  // tests run on one host
  EXPECT_EQ(runtime_.local_size(), comm_.size());
  EXPECT_FALSE(runtime_.host().empty());
}

}  // namespace
}  // namespace evenkeel
