// Plans of context parallelism, token by token: which query meets which key, how often, and what
// decay a token's part of a state has when it arrives.
#include "attention/context_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/base/philox.h"

namespace evenkeel {
namespace {

// A place on an axis that nobody communicates over.
class PlaceOnly : public Communicator {
 public:
  PlaceOnly(int rank, int size) : Communicator(rank, size, "cp") {}

  Work AllReduceAsync(TensorView, ReduceOp, const std::string&) override { return Never(); }
  Work BroadcastAsync(TensorView, int, const std::string&) override { return Never(); }
  Work AllGatherAsync(ConstTensorView, TensorView, absl::Span<const int64_t>,
                      const std::string&) override {
    return Never();
  }
  Work ReduceScatterAsync(ConstTensorView, TensorView, absl::Span<const int64_t>, ReduceOp,
                          const std::string&) override {
    return Never();
  }
  Work AllToAllAsync(ConstTensorView, absl::Span<const int64_t>, TensorView,
                     absl::Span<const int64_t>, const std::string&) override {
    return Never();
  }
  Work SendRecvAsync(absl::Span<const SendTo>, absl::Span<const ReceiveFrom>,
                     const std::string&) override {
    return Never();
  }
  Work BarrierAsync(const std::string&) override { return Never(); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int, int, const std::string&) override {
    return absl::UnimplementedError("planning does not communicate");
  }
  absl::StatusOr<std::unique_ptr<Communicator>> MakeGroup(absl::Span<const int>,
                                                          const std::string&) override {
    return absl::UnimplementedError("planning does not communicate");
  }
  void SetStep(int64_t) override {}
  [[noreturn]] void Abort(ExitCode) override { std::abort(); }

 private:
  static Work Never() {
    ADD_FAILURE() << "planning does not communicate";
    return Work();
  }
};

struct Token {
  int64_t document = 0;
  int64_t position = 0;
  auto operator<=>(const Token&) const = default;
};
using Pair = std::pair<Token, Token>;  // query, key

struct Case {
  SequenceSplit split;
  int ranks;
  std::vector<int64_t> cu_seqlens;
};

// Random batches: empty documents, documents of one token, documents longer than any rank's share,
// fewer tokens than ranks.
std::vector<Case> Cases() {
  std::vector<Case> cases;
  const Philox random(17, 2);
  uint64_t drawn = 0;
  const auto draw = [&](uint64_t n) { return static_cast<int64_t>(random.Bits(drawn++) % n); };
  for (const auto split : {SequenceSplit::kContiguous, SequenceSplit::kZigzag}) {
    for (const int ranks : {1, 2, 3, 4, 7}) {
      for (int round = 0; round < 12; ++round) {
        std::vector<int64_t> cu = {0};
        const int64_t documents = draw(6);
        for (int64_t d = 0; d < documents; ++d) {
          cu.push_back(cu.back() + (draw(3) == 0 ? draw(40) : draw(5)));
        }
        cases.push_back({split, ranks, cu});
      }
    }
  }
  return cases;
}

std::vector<Token> TokensOf(const SequenceLayout& layout, int rank) {
  std::vector<Token> tokens;
  for (const SequencePiece& piece : layout.pieces(rank)) {
    for (int64_t i = 0; i < piece.length; ++i) tokens.push_back({piece.document, piece.begin + i});
  }
  return tokens;
}

std::vector<Token> PackedTokens(const SequenceLayout& layout) {
  std::vector<Token> tokens;
  const std::vector<int64_t>& cu = layout.cu_seqlens();
  for (size_t d = 0; d + 1 < cu.size(); ++d) {
    for (int64_t i = 0; i < cu[d + 1] - cu[d]; ++i) tokens.push_back({static_cast<int64_t>(d), i});
  }
  return tokens;
}

class ContextPlanTest : public testing::Test {
 protected:
  static constexpr int64_t kBlock = 4;

  // The plans of all ranks.
  void Make(const Case& each, SoftmaxExchange softmax) {
    plans_.clear();
    comms_.clear();
    axes_.clear();
    for (int rank = 0; rank < each.ranks; ++rank) {
      comms_.push_back(std::make_unique<PlaceOnly>(rank, each.ranks));
      axes_.push_back(std::make_unique<AxisComm>(*comms_.back(), "cp", log_));
      ContextStrategy strategy;
      strategy.split = each.split;
      strategy.softmax = softmax;
      ContextPlanOptions options;
      options.has_softmax = true;
      options.has_linear = true;
      options.block_size = kBlock;
      options.head_size = 8;
      options.num_heads = 2;
      plans_.push_back(
          MakeContextPlan(context_, *axes_.back(), strategy, each.cu_seqlens, options));
    }
  }

  MemoryTracker tracker_;
  ThreadPool pool_{1};
  Arena arena_ = *Arena::Create(int64_t{1} << 30, tracker_);
  OpContext context_{pool_, arena_, DType::kF64};
  CommLog log_;
  std::vector<std::unique_ptr<Communicator>> comms_;
  std::vector<std::unique_ptr<AxisComm>> axes_;
  std::vector<std::unique_ptr<ContextPlan>> plans_;
};

// Counts the pairs that a list of tasks computes, by the definition in attention_task_type.h.
void CountPairs(absl::Span<const AttentionTask> tasks, const std::vector<Token>& queries,
                const std::vector<Token>& keys, std::map<Pair, int>& counts) {
  for (const AttentionTask& task : tasks) {
    for (int64_t i = 0; i < task.q_len; ++i) {
      const int64_t seen =
          std::clamp<int64_t>(task.kv_len + task.q_ahead - (task.q_len - 1 - i), 0, task.kv_len);
      for (int64_t j = 0; j < seen; ++j) {
        ++counts[{queries.at(static_cast<size_t>(task.q_begin + i)),
                  keys.at(static_cast<size_t>(task.kv_begin + j))}];
      }
    }
  }
}

// Every query against all keys of its document up to its own, of its block if `block` > 0.
std::map<Pair, int> CausalPairsOnce(const std::vector<Token>& queries, int64_t block) {
  std::map<Pair, int> counts;
  for (const Token& query : queries) {
    const int64_t first = block == 0 ? 0 : query.position / block * block;
    for (int64_t key = first; key <= query.position; ++key) {
      counts[{query, {query.document, key}}] = 1;
    }
  }
  return counts;
}

TEST_F(ContextPlanTest, GatheredTasksMeetEveryKeyOnce) {
  for (const Case& each : Cases()) {
    Make(each, SoftmaxExchange::kGather);
    for (int rank = 0; rank < each.ranks; ++rank) {
      const ContextPlan& plan = *plans_[static_cast<size_t>(rank)];
      const std::vector<Token> mine = TokensOf(plan.layout, rank);
      const std::vector<Token> packed = PackedTokens(plan.layout);
      std::map<Pair, int> counts, block_counts;
      CountPairs(plan.tasks.tasks, mine, packed, counts);
      ASSERT_EQ(counts, CausalPairsOnce(mine, 0));
      CountPairs(plan.block_tasks.tasks, mine, packed, block_counts);
      ASSERT_EQ(block_counts, CausalPairsOnce(mine, kBlock));
    }
  }
}

TEST_F(ContextPlanTest, RingStepsMeetEveryKeyOnceInAscendingOrder) {
  for (const Case& each : Cases()) {
    Make(each, SoftmaxExchange::kRing);
    for (int rank = 0; rank < each.ranks; ++rank) {
      const ContextPlan& plan = *plans_[static_cast<size_t>(rank)];
      const std::vector<Token> mine = TokensOf(plan.layout, rank);
      std::map<Pair, int> counts;
      ASSERT_EQ(plan.ring_steps.size(), static_cast<size_t>(each.ranks));
      for (int step = 0; step < each.ranks; ++step) {
        const int source = (rank - step + each.ranks) % each.ranks;
        const std::vector<Token> keys = TokensOf(plan.layout, source);
        std::map<int64_t, int64_t> last_key;  // by query row, over the lists of the step
        for (const TaskPlan& list : plan.ring_steps[static_cast<size_t>(step)]) {
          ASSERT_FALSE(list.tasks.empty());
          std::vector<int> uses(mine.size(), 0);
          for (const AttentionTask& task : list.tasks) {
            for (int64_t row = task.q_begin; row < task.q_begin + task.q_len; ++row) {
              ASSERT_EQ(++uses.at(static_cast<size_t>(row)), 1) << "two tasks share a query";
              ASSERT_GE(task.kv_begin, last_key[row]);
              last_key[row] = task.kv_begin + task.kv_len;
            }
          }
          CountPairs(list.tasks, mine, keys, counts);
        }
      }
      ASSERT_EQ(counts, CausalPairsOnce(mine, 0));
    }
  }
}

// What a token adds to a scalar state.
double Added(int64_t document, int64_t position) {
  return 1 + 0.37 * static_cast<double>(document) + 0.11 * static_cast<double>(position % 7);
}

constexpr double kDecay = 0.9;

// The state before `begin`, and the gradient after `end` in a document of `length` tokens.
double StateBefore(int64_t document, int64_t begin) {
  double state = 0;
  for (int64_t t = 0; t < begin; ++t) state = kDecay * state + Added(document, t);
  return state;
}
double GradientAfter(int64_t document, int64_t end, int64_t length) {
  double gradient = 0;
  for (int64_t t = length; t-- > end;) gradient = kDecay * gradient + Added(document, t);
  return gradient;
}

// Pieces with one before (or after), rank by rank, as the exchange lays them out.
struct Travellers {
  std::vector<std::vector<SequencePiece>> by_rank;
  std::vector<std::pair<int, int64_t>> places;  // of all, in rank order: rank, index there
};

Travellers TravellersOf(const SequenceLayout& layout, bool with_before) {
  Travellers travellers;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    travellers.by_rank.emplace_back();
    for (const SequencePiece& piece : layout.pieces(rank)) {
      const auto d = static_cast<size_t>(piece.document);
      const int64_t length = layout.cu_seqlens()[d + 1] - layout.cu_seqlens()[d];
      if (with_before ? piece.begin > 0 : piece.begin + piece.length < length) {
        travellers.places.emplace_back(rank, travellers.by_rank.back().size());
        travellers.by_rank.back().push_back(piece);
      }
    }
  }
  return travellers;
}

TEST_F(ContextPlanTest, StatesArriveWithTheDecayOfTheTokensBetween) {
  for (const Case& each : Cases()) {
    Make(each, SoftmaxExchange::kGather);
    for (int rank = 0; rank < each.ranks; ++rank) {
      const ContextPlan& plan = *plans_[static_cast<size_t>(rank)];
      const Travellers before = TravellersOf(plan.layout, true);
      const Travellers after = TravellersOf(plan.layout, false);
      const auto length_of = [&](const SequencePiece& piece) {
        const auto d = static_cast<size_t>(piece.document);
        return plan.layout.cu_seqlens()[d + 1] - plan.layout.cu_seqlens()[d];
      };
      for (int r = 0; r < each.ranks; ++r) {
        const auto at = static_cast<size_t>(r);
        ASSERT_EQ(plan.before_rows[at], static_cast<int64_t>(before.by_rank[at].size()));
        ASSERT_EQ(plan.after_rows[at], static_cast<int64_t>(after.by_rank[at].size()));
      }
      const auto check = [&](const std::vector<StateTerm>& terms, const Travellers& targets,
                             const Travellers& sources, bool is_forward) {
        const auto& mine = targets.by_rank[static_cast<size_t>(rank)];
        std::vector<double> arrived(mine.size(), 0);
        int64_t last_target = 0;
        for (const StateTerm& term : terms) {
          ASSERT_GE(term.target, last_target);
          last_target = term.target;
          const auto [source_rank, index] = sources.places.at(static_cast<size_t>(term.source));
          const SequencePiece& piece =
              sources.by_rank[static_cast<size_t>(source_rank)][static_cast<size_t>(index)];
          // What the piece alone adds, from a state of zero.
          double added = 0;
          for (int64_t i = 0; i < piece.length; ++i) {
            const int64_t t = is_forward ? piece.begin + i : piece.begin + piece.length - 1 - i;
            added = kDecay * added + Added(piece.document, t);
          }
          arrived.at(static_cast<size_t>(term.target)) +=
              std::pow(kDecay, static_cast<double>(term.distance)) * added;
        }
        for (size_t i = 0; i < mine.size(); ++i) {
          const SequencePiece& piece = mine[i];
          const double expected =
              is_forward
                  ? StateBefore(piece.document, piece.begin)
                  : GradientAfter(piece.document, piece.begin + piece.length, length_of(piece));
          ASSERT_NEAR(arrived[i], expected, 1e-12 * expected);
        }
      };
      check(plan.before_terms, before, after, true);
      check(plan.after_terms, after, before, false);
    }
  }
}

// Cuts follow each other through a document, and name the pieces on either side.
TEST_F(ContextPlanTest, CutsJoinNeighbouringPieces) {
  for (const Case& each : Cases()) {
    Make(each, SoftmaxExchange::kGather);
    const ContextPlan& plan = *plans_.front();
    const Travellers before = TravellersOf(plan.layout, true);
    const Travellers after = TravellersOf(plan.layout, false);
    ASSERT_EQ(plan.cuts.size(), before.places.size());
    bool is_start = true;
    SequencePiece last;
    for (const PieceCut& cut : plan.cuts) {
      const SequencePiece& from =
          after.by_rank[static_cast<size_t>(cut.from_rank)].at(static_cast<size_t>(cut.from_index));
      const SequencePiece& to =
          before.by_rank[static_cast<size_t>(cut.to_rank)].at(static_cast<size_t>(cut.to_index));
      ASSERT_EQ(from.document, to.document);
      ASSERT_EQ(from.begin + from.length, to.begin);
      ASSERT_EQ(cut.from_length, from.length);
      ASSERT_EQ(cut.to_length, to.length);
      ASSERT_EQ(cut.starts_document, is_start);
      ASSERT_EQ(cut.starts_document, from.begin == 0);
      if (!is_start) {
        ASSERT_EQ(from, last);
      }
      const auto d = static_cast<size_t>(to.document);
      is_start =
          to.begin + to.length == plan.layout.cu_seqlens()[d + 1] - plan.layout.cu_seqlens()[d];
      ASSERT_EQ(cut.ends_document, is_start);
      last = to;
    }
    // All ranks have the same.
    for (const auto& other : plans_) ASSERT_EQ(other->cuts.size(), plan.cuts.size());
  }
}

TEST_F(ContextPlanTest, RunsHoldPiecesOfOneKindInOrder) {
  for (const Case& each : Cases()) {
    Make(each, SoftmaxExchange::kGather);
    for (int rank = 0; rank < each.ranks; ++rank) {
      const ContextPlan& plan = *plans_[static_cast<size_t>(rank)];
      const std::vector<SequencePiece>& pieces = plan.layout.pieces(rank);
      size_t at = 0;
      int64_t row = 0, before = 0, after = 0;
      for (const PieceRun& run : plan.runs) {
        ASSERT_EQ(run.token_begin, row);
        ASSERT_EQ(run.first_before, before);
        ASSERT_EQ(run.first_after, after);
        ASSERT_GT(run.num_pieces(), 0);
        for (int64_t i = 0; i < run.num_pieces(); ++i, ++at) {
          const SequencePiece& piece = pieces.at(at);
          const auto d = static_cast<size_t>(piece.document);
          const int64_t length = plan.layout.cu_seqlens()[d + 1] - plan.layout.cu_seqlens()[d];
          ASSERT_EQ(run.cu_seqlens[static_cast<size_t>(i)], row - run.token_begin);
          ASSERT_EQ(run.has_before, piece.begin > 0);
          ASSERT_EQ(run.has_after, piece.begin + piece.length < length);
          before += run.has_before;
          after += run.has_after;
          row += piece.length;
        }
        ASSERT_EQ(run.token_end, row);
        ASSERT_EQ(run.cu_seqlens.back(), row - run.token_begin);
      }
      ASSERT_EQ(at, pieces.size());
      ASSERT_EQ(before, plan.num_before());
      ASSERT_EQ(after, plan.num_after());
    }
  }
}

}  // namespace
}  // namespace evenkeel
