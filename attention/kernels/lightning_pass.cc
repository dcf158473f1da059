#include "attention/kernels/lightning_pass.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "attention/kernels/lightning_chunk.h"

namespace evenkeel::lightning {
namespace {

// Documents of at most this many tokens go token by token: a chunk pays for a whole tile of rows.
constexpr int64_t kTokenSteps = 4;

// Chunks of a band for every thread, when the threads share a sequence: enough to even them out.
constexpr int64_t kBandChunksPerThread = 4;

struct Document {
  int64_t index = 0;
  int64_t begin = 0;
  int64_t length = 0;
};

// Calls body(thread, i) for i in [0, n), next index to the next free thread.
void ForEachItem(ThreadPool& pool, int64_t n, const std::function<void(int, int64_t)>& body) {
  if (pool.num_threads() == 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(0, i);
    return;
  }
  std::atomic<int64_t> next{0};
  pool.RunOnAll([&](int thread) {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(thread, i);
  });
}

// One pass in progress: its sizes, tables and scratch.
template <typename T>
class Runner {
 public:
  Runner(const OpContext& context, absl::Span<const double> slopes, const LightningPass<T>& pass,
         int64_t longest)
      : context_(context),
        pass_(pass),
        chunk_(std::min(kChunkTokens, longest)),
        shape_(MakeChunkShape<T>(chunk_, pass.key_size, pass.value_size)) {
    T* storage = Allocate(pass.num_heads * (2 * shape_.max_tokens + 1));
    for (int64_t h = 0; h < pass.num_heads; ++h) {
      decay_.push_back(MakeDecayPowers(slopes[static_cast<size_t>(h)], pass.reverse ? 1 : 0,
                                       shape_.max_tokens, storage));
      storage += 2 * shape_.max_tokens + 1;
    }
    for (int t = 0; t < context.pool.num_threads(); ++t) {
      scratch_.push_back(
          ChunkScratch<T>::At(shape_, Allocate(ChunkScratch<T>::NumElements(shape_))));
    }
  }

  // Each (document, head) on one thread, from its first chunk to its last.
  void RunWhole(absl::Span<const Document> documents) {
    const int64_t heads = pass_.num_heads;
    ForEachItem(context_.pool, static_cast<int64_t>(documents.size()) * heads,
                [&](int thread, int64_t item) {
                  const Document& document = documents[static_cast<size_t>(item / heads)];
                  const auto& scratch = scratch_[static_cast<size_t>(thread)];
                  if (document.length == 0) {
                    CopyState(document, item % heads, scratch.state);
                  } else if (document.length <= kTokenSteps && wants_output()) {
                    RunTokens(document, item % heads, scratch);
                  } else {
                    RunChunks(document, item % heads, scratch);
                  }
                });
  }

  // All threads on one document, band by band of its chunks: what each chunk adds to the state,
  // then the states before each chunk, then the outputs. The sums are those of RunWhole, bit for
  // bit: a state is lambda^m times the one before plus the chunk's own product in both.
  void RunInBands(const Document& document) {
    const ArenaScope scope(context_.arena);
    const int64_t heads = pass_.num_heads;
    const int64_t num_chunks = (document.length + chunk_ - 1) / chunk_;
    const int64_t band = std::min(
        num_chunks, (kBandChunksPerThread * context_.pool.num_threads() + heads - 1) / heads);
    const int64_t size = shape_.state_elements();
    T* running = Allocate(heads * size);
    T* states = Allocate(band * heads * size);
    bool is_zero = pass_.initial_state.data == nullptr;
    if (!is_zero) {
      ForEachItem(context_.pool, heads,
                  [&](int, int64_t h) { LoadState(document, h, running + h * size); });
    }
    for (int64_t first = 0; first < num_chunks; first += band) {
      const int64_t count = std::min(band, num_chunks - first);
      ForEachItem(context_.pool, count * heads, [&](int thread, int64_t item) {
        const auto& scratch = scratch_[static_cast<size_t>(thread)];
        const Chunk chunk = ChunkOf(document, item % heads, first + item / heads);
        PackForState(shape_, chunk.length, decay(item % heads), chunk.k, chunk.v, scratch);
        UpdateState<T>(shape_, chunk.length, decay(item % heads), scratch, nullptr,
                       states + item * size);
      });
      // Exchanges what a chunk adds for the state before it; `running` becomes the state after all.
      ForEachItem(context_.pool, heads, [&](int thread, int64_t h) {
        T* next = scratch_[static_cast<size_t>(thread)].state;
        for (int64_t c = 0; c < count; ++c) {
          T* state = states + (c * heads + h) * size;
          if (is_zero && c == 0) {
            std::copy(state, state + size, next);
          } else {
            AddDecayedState(shape_, ChunkOf(document, h, first + c).length, decay(h),
                            running + h * size, state, next);
            std::copy(running + h * size, running + (h + 1) * size, state);
          }
          std::copy(next, next + size, running + h * size);
        }
      });
      ForEachItem(context_.pool, wants_output() ? count * heads : 0, [&](int thread, int64_t item) {
        const auto& scratch = scratch_[static_cast<size_t>(thread)];
        const Chunk chunk = ChunkOf(document, item % heads, first + item / heads);
        PackForState(shape_, chunk.length, decay(item % heads), chunk.k, chunk.v, scratch);
        const T* state = is_zero && item / heads == 0 ? nullptr : states + item * size;
        ChunkOutput(shape_, chunk.length, decay(item % heads), chunk.q, chunk.k, state, scratch,
                    chunk.out);
      });
      is_zero = false;
    }
    ForEachItem(context_.pool, heads,
                [&](int, int64_t h) { StoreState(document, h, running + h * size); });
  }

  // True if one head of the document is too much for one thread, given what there is in all.
  bool NeedsBands(const Document& document, int64_t all_tokens) const {
    const int64_t threads = context_.pool.num_threads();
    return threads > 1 && document.length > 2 * chunk_ &&
           2 * document.length * threads > all_tokens * pass_.num_heads;
  }

 private:
  struct Chunk {
    int64_t length = 0;
    TokenRows<const T> q, k, v;
    TokenRows<T> out;
  };

  T* Allocate(int64_t elements) {
    return context_.arena.Allocate(DTypeOf<T>::value, Shape{elements}, MemoryPurpose::kWorkspace)
        .template as<T>();
  }

  bool wants_output() const { return pass_.out.data != nullptr; }

  const DecayPowers<T>& decay(int64_t head) const { return decay_[static_cast<size_t>(head)]; }

  // Rows of the document from its n-th token in the direction of the pass.
  template <typename U>
  TokenRows<U> Rows(const HeadRows<U>& rows, const Document& document, int64_t head,
                    int64_t n) const {
    const int64_t token = document.begin + (pass_.reverse ? document.length - 1 - n : n);
    return {rows.data + token * rows.token_stride + head * rows.head_stride,
            pass_.reverse ? -rows.token_stride : rows.token_stride};
  }

  Chunk ChunkOf(const Document& document, int64_t head, int64_t index) const {
    const int64_t begin = index * chunk_;
    return {std::min(chunk_, document.length - begin), Rows(pass_.q, document, head, begin),
            Rows(pass_.k, document, head, begin), Rows(pass_.v, document, head, begin),
            Rows(pass_.out, document, head, begin)};
  }

  template <typename U>
  static U* StateOf(const StateArray<U>& states, const Document& document, int64_t head) {
    return states.data + document.index * states.document_stride + head * states.head_stride;
  }

  // Loads the initial state, which is not null, zero padded.
  void LoadState(const Document& document, int64_t head, T* state) const {
    const auto& from = pass_.initial_state;
    const T* data = StateOf(from, document, head);
    std::fill(state, state + shape_.state_elements(), T{0});
    for (int64_t d = 0; d < pass_.key_size; ++d) {
      for (int64_t e = 0; e < pass_.value_size; ++e) {
        state[d * shape_.value_stride + e] = data[d * from.row_stride + e * from.column_stride];
      }
    }
  }

  // Stores the final state if it is wanted.
  void StoreState(const Document& document, int64_t head, const T* state) const {
    const auto& to = pass_.final_state;
    if (to.data == nullptr) return;
    T* data = StateOf(to, document, head);
    for (int64_t d = 0; d < pass_.key_size; ++d) {
      const T* row = state + d * shape_.value_stride;
      std::copy(row, row + pass_.value_size, data + d * to.row_stride);
    }
  }

  void CopyState(const Document& document, int64_t head, T* state) const {
    if (pass_.initial_state.data == nullptr) {
      std::fill(state, state + shape_.state_elements(), T{0});
    } else {
      LoadState(document, head, state);
    }
    StoreState(document, head, state);
  }

  void RunChunks(const Document& document, int64_t head, const ChunkScratch<T>& scratch) const {
    const T* state = nullptr;
    if (pass_.initial_state.data != nullptr) {
      LoadState(document, head, scratch.state);
      state = scratch.state;
    }
    const int64_t num_chunks = (document.length + chunk_ - 1) / chunk_;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const Chunk chunk = ChunkOf(document, head, c);
      PackForState(shape_, chunk.length, decay(head), chunk.k, chunk.v, scratch);
      if (wants_output()) {
        ChunkOutput(shape_, chunk.length, decay(head), chunk.q, chunk.k, state, scratch, chunk.out);
      }
      if (c + 1 < num_chunks || pass_.final_state.data != nullptr) {
        UpdateState(shape_, chunk.length, decay(head), scratch, state, scratch.state);
        state = scratch.state;
      }
    }
    StoreState(document, head, scratch.state);
  }

  void RunTokens(const Document& document, int64_t head, const ChunkScratch<T>& scratch) const {
    const auto& initial = pass_.initial_state;
    const auto& final = pass_.final_state;
    const T* state = nullptr;
    int64_t stride = shape_.value_stride;
    if (initial.data != nullptr && initial.column_stride == 1) {
      state = StateOf(initial, document, head);
      stride = initial.row_stride;
    } else if (initial.data != nullptr) {
      LoadState(document, head, scratch.state);
      state = scratch.state;
    }
    T* next = final.data != nullptr ? StateOf(final, document, head) : scratch.state;
    const int64_t next_stride = final.data != nullptr ? final.row_stride : shape_.value_stride;
    for (int64_t n = 0; n < document.length; ++n) {
      TokenStep(shape_, decay(head), Rows(pass_.q, document, head, n).data,
                Rows(pass_.k, document, head, n).data, Rows(pass_.v, document, head, n).data, state,
                stride, next, next_stride, Rows(pass_.out, document, head, n).data);
      state = next;
      stride = next_stride;
    }
  }

  const OpContext& context_;
  const LightningPass<T>& pass_;
  int64_t chunk_;  // tokens
  ChunkShape shape_;
  std::vector<DecayPowers<T>> decay_;     // by head
  std::vector<ChunkScratch<T>> scratch_;  // by thread
};

}  // namespace

template <typename T>
void RunLightningPass(const OpContext& context, absl::Span<const int64_t> cu_seqlens,
                      absl::Span<const double> slopes, const LightningPass<T>& pass) {
  std::vector<Document> documents;
  for (size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    documents.push_back(
        {static_cast<int64_t>(b), cu_seqlens[b], cu_seqlens[b + 1] - cu_seqlens[b]});
  }
  if (documents.empty()) return;
  // Longest first, so that no thread is left with a long one at the end.
  std::stable_sort(documents.begin(), documents.end(),
                   [](const Document& a, const Document& b) { return a.length > b.length; });
  const ArenaScope scope(context.arena);
  Runner<T> runner(context, slopes, pass, documents.front().length);
  size_t in_bands = 0;
  while (in_bands < documents.size() && runner.NeedsBands(documents[in_bands], cu_seqlens.back())) {
    runner.RunInBands(documents[in_bands]);
    ++in_bands;
  }
  runner.RunWhole(absl::MakeConstSpan(documents).subspan(in_bands));
}

template void RunLightningPass(const OpContext&, absl::Span<const int64_t>,
                               absl::Span<const double>, const LightningPass<float>&);
template void RunLightningPass(const OpContext&, absl::Span<const int64_t>,
                               absl::Span<const double>, const LightningPass<double>&);

}  // namespace evenkeel::lightning
