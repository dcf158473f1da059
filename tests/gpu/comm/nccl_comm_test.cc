// Every call against the same call over MPI. All sums are of small integers, exact in every type,
// so equality is demanded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/philox.h"
#include "runtime/comm/cuda/nccl_communicator.h"
#include "tests/gpu/comm/nccl_fixture.h"

namespace evenkeel {
namespace {

using NcclCollectives = NcclTest;

constexpr int64_t kSizes[] = {0, 1, 7, 1009, 300007};
constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin};

// Different on each rank; sums over the ranks stay small.
template <typename T>
std::vector<T> Values(int64_t size, int rank) {
  std::vector<T> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] =
        static_cast<T>(static_cast<int>((7 * i + 31 * static_cast<size_t>(rank)) % 101) - 50);
  }
  return values;
}

template <typename T>
void CheckAllReduce(Communicator& mpi, Communicator& nccl, cudaStream_t stream) {
  for (const int64_t size : kSizes) {
    for (const ReduceOp op : kOps) {
      TwinTensor<T> data(Values<T>(size, mpi.rank()));
      ASSERT_TRUE(mpi.AllReduce(data.host(), op, "x").ok());
      ASSERT_TRUE(nccl.AllReduce(data.device(), op, "x").ok());
      ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      data.ExpectEqual(absl::StrCat("reduction ", static_cast<int>(op)));
    }
  }
}

TEST_F(NcclCollectives, AllReduce) {
  CheckAllReduce<float>(mpi(), nccl(), stream());
  CheckAllReduce<double>(mpi(), nccl(), stream());
  CheckAllReduce<int32_t>(mpi(), nccl(), stream());
  CheckAllReduce<int64_t>(mpi(), nccl(), stream());
}

TEST_F(NcclCollectives, AllReduceOfBf16) {
  std::vector<Bits> values;
  std::vector<double> sums;
  for (int i = 0; i < 1001; ++i) {
    values.push_back(ToBits(i % 16 + rank()));
    sums.push_back(i % 16 * size() + size() * (size() - 1) / 2);
  }
  const DeviceArray<Bits> data(values);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const TensorView view(data.data(), DType::kBF16, {1001}, Device::kCuda);
  ASSERT_TRUE(nccl().AllReduce(view, ReduceOp::kSum, "bf16").ok());
  Synchronize();
  const std::vector<Bits> got = data.Download();
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(FromBits(got[i]), sums[i]) << i;
}

TEST_F(NcclCollectives, SumsOfRandomFloatsAreTheSameBitsInEveryRunAndOnAllRanks) {
  for (const int64_t n : {int64_t{1000}, int64_t{1} << 20}) {
    const Philox random(5, static_cast<uint64_t>(rank()));
    std::vector<float> values(static_cast<size_t>(n));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(random.Normal(i) * std::exp(8 * random.Normal(~i)));
    }
    std::vector<std::vector<float>> results;
    for (int run = 0; run < 2; ++run) {
      const TwinTensor<float> data(values);
      ASSERT_TRUE(nccl().AllReduce(data.device(), ReduceOp::kSum, "random").ok());
      Synchronize();
      results.push_back(data.Download());
    }
    std::vector<float> of_root = results[0];
    ASSERT_TRUE(mpi().Broadcast(HostView(of_root), 0, "compare").ok());
    const size_t bytes = values.size() * sizeof(float);
    EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), bytes), 0);
    EXPECT_EQ(std::memcmp(results[0].data(), of_root.data(), bytes), 0);
  }
}

TEST_F(NcclCollectives, BroadcastFromEachRoot) {
  for (int root = 0; root < size(); ++root) {
    for (const int64_t n : kSizes) {
      TwinTensor<int64_t> data(Values<int64_t>(n, rank()));
      ASSERT_TRUE(mpi().Broadcast(data.host(), root, "b").ok());
      ASSERT_TRUE(nccl().Broadcast(data.device(), root, "b").ok());
      Synchronize();
      data.ExpectEqual(absl::StrCat("root ", root));
    }
  }
}

// Numbers of rows: equal ones, 0, 1, 2, ... and none on the last rank, and none anywhere.
std::vector<std::vector<int64_t>> RowCounts(int size) {
  const auto n = static_cast<size_t>(size);
  std::vector<int64_t> unequal(n);
  std::iota(unequal.begin(), unequal.end(), 0);
  for (int64_t& rows : unequal) rows *= 1001;
  unequal[0] = 3;
  unequal.back() = 0;
  return {std::vector<int64_t>(n, 500), unequal, std::vector<int64_t>(n, 0)};
}

TEST_F(NcclCollectives, AllGatherInAndOutOfPlace) {
  const auto me = static_cast<size_t>(rank());
  for (const std::vector<int64_t>& rows : RowCounts(size())) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const int64_t begin = std::accumulate(rows.begin(), rows.begin() + rank(), int64_t{0});
    for (const int64_t columns : {1, 3}) {
      TwinTensor<float> mine(Values<float>(rows[me] * columns, rank()), columns);
      TwinTensor<float> all(std::vector<float>(static_cast<size_t>(total * columns), -1), columns);
      ASSERT_TRUE(mpi().AllGather(mine.host(), all.host(), rows, "g").ok());
      ASSERT_TRUE(nccl().AllGather(mine.device(), all.device(), rows, "g").ok());
      Synchronize();
      all.ExpectEqual("out of place");

      TwinTensor<float> place(std::vector<float>(static_cast<size_t>(total * columns), rank()),
                              columns);
      ASSERT_TRUE(
          mpi()
              .AllGather(place.host().Rows(begin, begin + rows[me]), place.host(), rows, "in place")
              .ok());
      ASSERT_TRUE(nccl()
                      .AllGather(place.device().Rows(begin, begin + rows[me]), place.device(), rows,
                                 "in place")
                      .ok());
      Synchronize();
      place.ExpectEqual("in place");
    }
  }
}

TEST_F(NcclCollectives, AllGatherMovesBf16) {
  const DeviceArray<Bits> mine(std::vector<Bits>{static_cast<Bits>(rank()), 7});
  const DeviceArray<Bits> all(2 * static_cast<size_t>(size()));
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_TRUE(nccl()
                  .AllGather(TensorView(mine.data(), DType::kBF16, {1, 2}, Device::kCuda),
                             TensorView(all.data(), DType::kBF16, {size(), 2}, Device::kCuda),
                             "bf16")
                  .ok());
  Synchronize();
  std::vector<Bits> expected;
  for (int r = 0; r < size(); ++r) {
    expected.push_back(static_cast<Bits>(r));
    expected.push_back(7);
  }
  EXPECT_EQ(all.Download(), expected);
}

TEST_F(NcclCollectives, ReduceScatter) {
  const auto me = static_cast<size_t>(rank());
  for (const std::vector<int64_t>& rows : RowCounts(size())) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    for (const ReduceOp op : kOps) {
      TwinTensor<float> all(Values<float>(total * 5, rank()), 5);
      TwinTensor<float> mine(std::vector<float>(static_cast<size_t>(rows[me] * 5), -1), 5);
      ASSERT_TRUE(mpi().ReduceScatter(all.host(), mine.host(), rows, op, "rs").ok());
      ASSERT_TRUE(nccl().ReduceScatter(all.device(), mine.device(), rows, op, "rs").ok());
      Synchronize();
      mine.ExpectEqual(absl::StrCat("reduction ", static_cast<int>(op)));
      all.ExpectEqual("the input stays");
    }
  }
}

TEST_F(NcclCollectives, RandomAllToAll) {
  const int n = size();
  for (uint64_t round = 0; round < 20; ++round) {
    // The same on every rank; half of the pairs send nothing.
    const Philox random(3, round);
    const auto count = [&](int from, int to) {
      const uint64_t bits = random.Bits(static_cast<uint64_t>(from * n + to));
      return bits % 2 == 0 ? 0 : static_cast<int64_t>(bits / 2 % 3000);
    };
    std::vector<int64_t> send_rows, recv_rows;
    int64_t num_sent = 0, num_received = 0;
    for (int peer = 0; peer < n; ++peer) {
      send_rows.push_back(count(rank(), peer));
      recv_rows.push_back(count(peer, rank()));
      num_sent += send_rows.back();
      num_received += recv_rows.back();
    }
    const int64_t columns = 1 + static_cast<int64_t>(round % 3);
    TwinTensor<int32_t> send(Values<int32_t>(num_sent * columns, rank()), columns);
    TwinTensor<int32_t> recv(std::vector<int32_t>(static_cast<size_t>(num_received * columns)),
                             columns);
    ASSERT_TRUE(mpi().AllToAll(send.host(), send_rows, recv.host(), recv_rows, "a2a").ok());
    ASSERT_TRUE(nccl().AllToAll(send.device(), send_rows, recv.device(), recv_rows, "a2a").ok());
    Synchronize();
    recv.ExpectEqual(absl::StrCat("round ", round));
  }
}

TEST_F(NcclCollectives, SendRecvGroups) {
  // To every rank, itself too: an empty message, a small and a large one.
  constexpr int64_t kMessages[] = {0, 3, 100003};
  std::vector<std::unique_ptr<TwinTensor<float>>> outgoing, incoming;
  std::vector<SendTo> host_sends, sends;
  std::vector<ReceiveFrom> host_receives, receives;
  for (int peer = 0; peer < size(); ++peer) {
    for (const int64_t n : kMessages) {
      outgoing.push_back(std::make_unique<TwinTensor<float>>(Values<float>(n, 10 * rank() + peer)));
      incoming.push_back(std::make_unique<TwinTensor<float>>(Values<float>(n, 100)));
      host_sends.push_back({peer, outgoing.back()->host()});
      host_receives.push_back({peer, incoming.back()->host()});
      sends.push_back({peer, outgoing.back()->device()});
      receives.push_back({peer, incoming.back()->device()});
    }
  }
  ASSERT_TRUE(mpi().SendRecv(host_sends, host_receives, "all pairs").ok());
  ASSERT_TRUE(nccl().SendRecv(sends, receives, "all pairs").ok());
  ASSERT_TRUE(nccl().SendRecv({}, {}, "nothing").ok());
  Synchronize();
  for (const auto& tensor : incoming) tensor->ExpectEqual("message");
}

TEST_F(NcclCollectives, MessagesOfSomeRanksOnly) {
  if (size() < 2) GTEST_SKIP() << "needs two ranks";
  if (rank() > 1) return;
  const TwinTensor<double> mine(Values<double>(5000, rank()));
  const TwinTensor<double> other(std::vector<double>(5000, 0.0));
  // A chain first, then both ways at once.
  if (rank() == 0) {
    ASSERT_TRUE(nccl().SendRecv({{1, mine.device()}}, {}, "there").ok());
  } else {
    ASSERT_TRUE(nccl().SendRecv({}, {{0, other.device()}}, "there").ok());
    Synchronize();
    EXPECT_EQ(other.Download(), Values<double>(5000, 0));
  }
  const int peer = 1 - rank();
  ASSERT_TRUE(nccl().SendRecv({{peer, mine.device()}}, {{peer, other.device()}}, "swap").ok());
  Synchronize();
  EXPECT_EQ(other.Download(), Values<double>(5000, peer));
}

TEST_F(NcclCollectives, MessagesAfterAllPairsAreConnected) {
  ASSERT_TRUE(nccl().ConnectPairs().ok());
  const TwinTensor<double> mine(Values<double>(100, rank()));
  const TwinTensor<double> other(std::vector<double>(100, 0.0));
  const int next = (rank() + 1) % size(), previous = (rank() + size() - 1) % size();
  ASSERT_TRUE(nccl().SendRecv({{next, mine.device()}}, {{previous, other.device()}}, "on").ok());
  Synchronize();
  EXPECT_EQ(other.Download(), Values<double>(100, previous));
}

TEST_F(NcclCollectives, SplitByColorAndKey) {
  // Even and odd ranks, each in reverse order.
  auto part = nccl().Split(rank() % 2, -rank(), rank() % 2 == 0 ? "even" : "odd");
  ASSERT_TRUE(part.ok()) << part.status();
  ASSERT_NE(*part, nullptr);
  EXPECT_EQ((*part)->name(), rank() % 2 == 0 ? "even" : "odd");
  EXPECT_EQ((*part)->size(), (size() - rank() % 2 + 1) / 2);
  EXPECT_EQ((*part)->rank(), (*part)->size() - 1 - rank() / 2);
  const TwinTensor<int64_t> value(std::vector<int64_t>{rank()});
  ASSERT_TRUE((*part)->AllReduce(value.device(), ReduceOp::kMax, "largest").ok());
  Synchronize();
  EXPECT_EQ(value.Download()[0], (size() - 1 - rank() % 2) / 2 * 2 + rank() % 2);
  // Some ranks in no group; then a split of a split; and the whole still works.
  auto first = nccl().Split(rank() == 0 ? 0 : -1, 0, "first");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(*first != nullptr, rank() == 0);
  auto alone = (*part)->Split((*part)->rank(), 0, "alone");
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ((*alone)->size(), 1);
  ASSERT_TRUE((*alone)->AllReduce(value.device(), ReduceOp::kSum, "alone").ok());
  ASSERT_TRUE((*alone)->Barrier("alone").ok());
  ASSERT_TRUE(nccl().Barrier("all").ok());
  Synchronize();
  EXPECT_TRUE(runtime().status().ok()) << runtime().status();
}

// A communicator of all ranks whose large gathers and scatters go by copy engines, in pieces of
// many slots' worth; null where it cannot.
std::unique_ptr<Communicator> WithPeerCopies(Communicator& nccl) {
  auto part = nccl.Split(0, nccl.rank(), "peers");
  EXPECT_TRUE(part.ok()) << part.status();
  auto& peers = dynamic_cast<NcclCommunicator&>(**part);
  const absl::StatusOr<bool> copies = peers.UsePeerCopies(int64_t{1} << 19);
  EXPECT_TRUE(copies.ok()) << copies.status();
  return copies.value_or(false) ? *std::move(part) : nullptr;
}

// Rows of 256 bytes and more than a slot of them: equal ones, unequal ones, none on the last rank.
std::vector<std::vector<int64_t>> ManyRowCounts(int size) {
  std::vector<std::vector<int64_t>> counts = {
      std::vector<int64_t>(static_cast<size_t>(size), 3001)};
  counts.emplace_back();
  for (int r = 0; r < size; ++r) counts.back().push_back(r == size - 1 ? 0 : 1700 + 1234 * r);
  counts.push_back({counts.back().rbegin(), counts.back().rend()});
  return counts;
}

TEST_F(NcclCollectives, GatherByPeerCopies) {
  const std::unique_ptr<Communicator> peers = WithPeerCopies(nccl());
  if (peers == nullptr) GTEST_SKIP() << "ranks do not reach each other's memory";
  constexpr int64_t kColumns = 64;
  const auto me = static_cast<size_t>(rank());
  for (const std::vector<int64_t>& rows : ManyRowCounts(size())) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const int64_t begin = std::accumulate(rows.begin(), rows.begin() + rank(), int64_t{0});
    TwinTensor<float> mine(Values<float>(rows[me] * kColumns, rank()), kColumns);
    TwinTensor<float> all(std::vector<float>(static_cast<size_t>(total * kColumns), -1), kColumns);
    TwinTensor<float> place(std::vector<float>(static_cast<size_t>(total * kColumns), rank()),
                            kColumns);
    ASSERT_TRUE(mpi().AllGather(mine.host(), all.host(), rows, "g").ok());
    ASSERT_TRUE(
        mpi()
            .AllGather(place.host().Rows(begin, begin + rows[me]), place.host(), rows, "in place")
            .ok());
    // Several calls in flight, which use each other's slots.
    for (int round = 0; round < 3; ++round) {
      ASSERT_TRUE(peers->AllGather(mine.device(), all.device(), rows, "g").ok());
      ASSERT_TRUE(peers
                      ->AllGather(place.device().Rows(begin, begin + rows[me]), place.device(),
                                  rows, "in place")
                      .ok());
    }
    Synchronize();
    all.ExpectEqual("out of place");
    place.ExpectEqual("in place");
  }
  ASSERT_TRUE(runtime().status().ok()) << runtime().status();
}

TEST_F(NcclCollectives, ScatterByPeerCopies) {
  const std::unique_ptr<Communicator> peers = WithPeerCopies(nccl());
  if (peers == nullptr) GTEST_SKIP() << "ranks do not reach each other's memory";
  constexpr int64_t kColumns = 128;
  const auto me = static_cast<size_t>(rank());
  for (const std::vector<int64_t>& rows : ManyRowCounts(size())) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    TwinTensor<float> all(Values<float>(total * kColumns, rank()), kColumns);
    TwinTensor<float> mine(std::vector<float>(static_cast<size_t>(rows[me] * kColumns), -1),
                           kColumns);
    ASSERT_TRUE(mpi().ReduceScatter(all.host(), mine.host(), rows, ReduceOp::kSum, "s").ok());
    for (int round = 0; round < 3; ++round) {
      ASSERT_TRUE(
          peers->ReduceScatter(all.device(), mine.device(), rows, ReduceOp::kSum, "s").ok());
    }
    Synchronize();
    mine.ExpectEqual("float32");

    std::vector<Bits> values;
    for (const float x : Values<float>(total * kColumns, rank())) values.push_back(ToBits(x));
    const DeviceArray<Bits> parts(values);
    const DeviceArray<Bits> sums(std::vector<Bits>(static_cast<size_t>(rows[me] * kColumns)));
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const TensorView from(parts.data(), DType::kBF16, {total, kColumns}, Device::kCuda);
    const TensorView to(sums.data(), DType::kBF16, {rows[me], kColumns}, Device::kCuda);
    ASSERT_TRUE(peers->ReduceScatter(from, to, rows, ReduceOp::kSum, "bf16").ok());
    Synchronize();
    const std::vector<Bits> got = sums.Download();
    const std::vector<float> want = mine.Download();
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(FromBits(got[i]), want[i]) << i;
  }
  ASSERT_TRUE(runtime().status().ok()) << runtime().status();
}

}  // namespace
}  // namespace evenkeel
