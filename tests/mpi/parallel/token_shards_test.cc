// Rows hold integers that tell whose they are, so that equality is demanded.
#include "parallel/token_shards.h"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/comm/mpi_runtime.h"

namespace evenkeel {
namespace {

constexpr int64_t kTokens[] = {0, 1, 2, 3, 5, 511, 512, 513, 1100, 1537};
constexpr int64_t kChunkRows[] = {1, 2, 7, 512};

class Shards : public testing::Test {
 protected:
  Shards()
      : mpi_(*MpiRuntime::Create({.timeout_s = 20})),
        comm_(mpi_.world()),
        all_(comm_, "tp", log_),
        axis_(comm_.size() == 1 ? nullptr : &all_),
        pool_(1),
        arena_(*Arena::Create(int64_t{1} << 30, tracker_)),
        context_{pool_, arena_, DType::kF64} {}

  template <typename Body>
  void ForEachCase(const Body& body) {
    for (const int64_t tokens : kTokens) {
      for (const int64_t rows : kChunkRows) {
        if (tokens / rows > 100) continue;  // thousands of tiny messages show nothing more
        SCOPED_TRACE(testing::Message() << tokens << " tokens in chunks of " << rows);
        for (const int64_t cut : {int64_t{0}, tokens / 2, tokens}) {
          SCOPED_TRACE(testing::Message() << "cut at " << cut);
          body(TokenShards(tokens, rows, axis_, cut));
        }
      }
    }
  }

  MpiRuntime mpi_;
  Communicator& comm_;
  CommLog log_;
  AxisComm all_;
  AxisComm* axis_;  // null for one rank
  MemoryTracker tracker_;
  ThreadPool pool_;
  Arena arena_;
  OpContext context_;
};

TEST_F(Shards, AreThoseOfTheirPartsEndToEnd) {
  for (const int64_t tokens : {0, 1, 5, 100}) {
    for (const int64_t cut : {int64_t{0}, tokens / 3, tokens}) {
      const TokenShards shards(tokens, 7, axis_, cut);
      const TokenShards parts[2] = {shards.Part(0), shards.Part(1)};
      ASSERT_EQ(shards.num_chunks(), parts[0].num_chunks() + parts[1].num_chunks());
      for (int64_t chunk = 0; chunk < shards.num_chunks(); ++chunk) {
        const bool is_first = chunk < parts[0].num_chunks();
        const TokenShards& part = parts[is_first ? 0 : 1];
        const int64_t at = is_first ? chunk : chunk - parts[0].num_chunks();
        const int64_t before = is_first ? 0 : cut, held = is_first ? 0 : parts[0].num_mine();
        ASSERT_EQ(shards.Whole(chunk).begin, before + part.Whole(at).begin);
        ASSERT_EQ(shards.Whole(chunk).end, before + part.Whole(at).end);
        ASSERT_EQ(shards.Mine(chunk).begin, held + part.Mine(at).begin);
        ASSERT_EQ(shards.Mine(chunk).end, held + part.Mine(at).end);
      }
      ASSERT_EQ(shards.num_mine(), parts[0].num_mine() + parts[1].num_mine());
    }
  }
}

double Value(int64_t token, int64_t column) {
  return static_cast<double>(7 * token + column);
}

TEST_F(Shards, CutEveryChunkIntoSharesThatDifferByAtMostOne) {
  ForEachCase([&](const TokenShards& shards) {
    int64_t next = 0, held = 0;
    for (int64_t chunk = 0; chunk < shards.num_chunks(); ++chunk) {
      const RowSpan whole = shards.Whole(chunk), mine = shards.Mine(chunk);
      ASSERT_EQ(whole.begin, next);
      ASSERT_GT(whole.size(), 0);
      ASSERT_LE(whole.size(), shards.max_rows());
      next = whole.end;
      const std::vector<int64_t> shares = shards.Shares(chunk);
      ASSERT_EQ(shares.size(), static_cast<size_t>(comm_.size()));
      int64_t begin = whole.begin, sum = 0;
      for (int rank = 0; rank < comm_.size(); ++rank) {
        const int64_t share = shares[static_cast<size_t>(rank)];
        ASSERT_GE(share, whole.size() / comm_.size());
        ASSERT_LE(share, (whole.size() + comm_.size() - 1) / comm_.size());
        if (rank < comm_.rank()) begin += share;
        sum += share;
      }
      ASSERT_EQ(sum, whole.size());
      // Held one chunk after the other.
      ASSERT_EQ(mine.begin, held);
      ASSERT_EQ(mine.size(), shares[static_cast<size_t>(comm_.rank())]);
      ASSERT_LE(mine.size(), shards.max_share());
      ASSERT_EQ(shards.PlaceOfMine(chunk).begin, begin);
      ASSERT_EQ(shards.PlaceOfMine(chunk).size(), mine.size());
      held = mine.end;
    }
    ASSERT_EQ(next, shards.num_tokens());
    ASSERT_EQ(shards.num_mine(), held);
  });
}

TEST_F(Shards, GatherWithTwoChunksUnderWay) {
  for (const int64_t width : {1, 5}) {
    ForEachCase([&](const TokenShards& shards) {
      const ArenaScope scope(arena_);
      std::vector<double> mine(static_cast<size_t>(shards.num_mine() * width));
      const TensorView view(mine.data(), DType::kF64, {shards.num_mine(), width});
      ChunkGather gather(context_, shards, width, "rows");
      const auto start = [&](int64_t chunk) {
        const RowSpan held = shards.Mine(chunk), place = shards.PlaceOfMine(chunk);
        for (int64_t row = 0; row < held.size(); ++row) {
          for (int64_t c = 0; c < width; ++c) {
            mine[static_cast<size_t>((held.begin + row) * width + c)] = Value(place.begin + row, c);
          }
        }
        gather.Start(chunk, view.Rows(held.begin, held.end));
      };
      if (shards.num_chunks() > 0) start(0);
      for (int64_t chunk = 0; chunk < shards.num_chunks(); ++chunk) {
        if (chunk + 1 < shards.num_chunks()) start(chunk + 1);
        const ConstTensorView rows = gather.Finish(chunk);
        const RowSpan whole = shards.Whole(chunk);
        ASSERT_EQ(rows.dim(0), whole.size());
        for (int64_t row = 0; row < whole.size(); ++row) {
          for (int64_t c = 0; c < width; ++c) {
            ASSERT_EQ(rows.as<double>()[row * width + c], Value(whole.begin + row, c))
                << "row " << row << " of chunk " << chunk;
          }
        }
      }
      ASSERT_TRUE(log_.status().ok()) << log_.status();
    });
  }
}

TEST_F(Shards, ScatterSumsWithTwoChunksUnderWay) {
  if (comm_.size() == 1) GTEST_SKIP() << "one rank keeps its rows where they are";
  const int64_t n = comm_.size();
  for (const int64_t width : {1, 5}) {
    ForEachCase([&](const TokenShards& shards) {
      const ArenaScope scope(arena_);
      std::vector<double> mine(static_cast<size_t>(shards.num_mine() * width), -1);
      const TensorView view(mine.data(), DType::kF64, {shards.num_mine(), width});
      ChunkScatter scatter(context_, shards, width, "partial sums");
      for (int64_t chunk = 0; chunk <= shards.num_chunks(); ++chunk) {
        if (chunk < shards.num_chunks()) {
          const RowSpan whole = shards.Whole(chunk), held = shards.Mine(chunk);
          const TensorView partial = scatter.Partial(chunk);
          ASSERT_EQ(partial.dim(0), whole.size());
          for (int64_t row = 0; row < whole.size(); ++row) {
            for (int64_t c = 0; c < width; ++c) {
              partial.as<double>()[row * width + c] =
                  Value(whole.begin + row, c) + 100 * comm_.rank();
            }
          }
          scatter.Start(chunk, view.Rows(held.begin, held.end));
        }
        if (chunk > 0) scatter.Finish(chunk - 1);
      }
      for (int64_t chunk = 0; chunk < shards.num_chunks(); ++chunk) {
        const RowSpan held = shards.Mine(chunk), place = shards.PlaceOfMine(chunk);
        for (int64_t row = 0; row < held.size(); ++row) {
          for (int64_t c = 0; c < width; ++c) {
            ASSERT_EQ(mine[static_cast<size_t>((held.begin + row) * width + c)],
                      static_cast<double>(n) * Value(place.begin + row, c) +
                          static_cast<double>(50 * n * (n - 1)))
                << "row " << row << " of chunk " << chunk;
          }
        }
      }
      ASSERT_TRUE(log_.status().ok()) << log_.status();
    });
  }
}

}  // namespace
}  // namespace evenkeel
