// One chunk of lightning attention for one head, on the CPU. With m tokens, lambda the decay of a
// token, and S [D, E] the state before the chunk:
//   P   = (Q K^T) * M,   M[t, s] = lambda^(t - s) for s <= t, else 0
//   O   = P V + diag(lambda^(t + 1 - shift)) Q S
//   S' = lambda^m S + (diag(lambda^(m - 1 - t + shift)) K)^T V
// shift = 0 runs the recurrence S_t = lambda S_{t-1} + k_t v_t^T, o_t = S_t^T q_t. shift = 1 decays
// after the output instead, o_t = (S + k_t v_t^T)^T q_t, S_t = lambda (S + k_t v_t^T): the
// recurrence that gradients follow from the last token back to the first. Powers are of
// non-negative exponents only, and tabulated, so no decay overflows.
#pragma once

#include <cstdint>

namespace evenkeel::lightning {

// Tokens of a chunk. The products of a token and head take 4 D E + chunk (D + E) operations, so
// long chunks cost more of them; short ones read and write the state more often. 32 is the fastest
// for D = E = 32, 64, 96 and 128 (of 16, 32, 48, 64, 128; 16 is within 5 % of it).
constexpr int64_t kChunkTokens = 32;

// Sizes of a chunk and of its packed operands. Strides are odd numbers of vectors, so that the rows
// of a column panel do not fall into the same few cache sets.
struct ChunkShape {
  int64_t max_tokens = 0;       // of a chunk, padded to whole tiles and vectors
  int64_t key_size = 0;         // D
  int64_t value_size = 0;       // E
  int64_t padded_key_size = 0;  // rows of a state
  int64_t key_stride = 0;       // elements from token to token of packed q and k
  int64_t value_stride = 0;     // from row to row of packed v and of a state
  int64_t token_stride = 0;     // from row to row of k transposed and of the scores

  int64_t state_elements() const { return padded_key_size * value_stride; }
};

// Shape for chunks of at most `tokens` tokens of elements of type T.
template <typename T>
ChunkShape MakeChunkShape(int64_t tokens, int64_t key_size, int64_t value_size);

// Decay powers of a head: power[-n] = lambda^n for n in [0, max_tokens], power[i] = 0 for
// i in (0, max_tokens], so that a row of M is contiguous: M[t, s] = power[s - t].
template <typename T>
struct DecayPowers {
  const T* power = nullptr;
  int64_t shift = 0;
};

// Writes the powers of lambda = exp(-slope) for chunks of `max_tokens`, computed in float64, into
// storage [2 * max_tokens + 1] and returns the table in it.
template <typename T>
DecayPowers<T> MakeDecayPowers(double slope, int64_t shift, int64_t max_tokens, T* storage);

// A thread's packed operands.
template <typename T>
struct ChunkScratch {
  T* q = nullptr;             // [max_tokens, key_stride]
  T* k_decayed = nullptr;     // [max_tokens, key_stride], rows scaled as the state's update needs
  T* k_transposed = nullptr;  // [padded_key_size, token_stride]
  T* v = nullptr;             // [max_tokens, value_stride]
  T* scores = nullptr;        // P [max_tokens, token_stride]
  T* state = nullptr;         // [padded_key_size, value_stride]

  static int64_t NumElements(const ChunkShape& shape);
  static ChunkScratch At(const ChunkShape& shape, T* storage);
};

// Rows of one head: row t at data + t * stride. A negative stride walks tokens backwards.
template <typename T>
struct TokenRows {
  T* data = nullptr;
  int64_t stride = 0;

  TokenRows From(int64_t token) const { return {data + token * stride, stride}; }
};

// Packs v and k scaled for the state's update; m tokens.
template <typename T>
void PackForState(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                  TokenRows<const T> k, TokenRows<const T> v, const ChunkScratch<T>& scratch);

// state_out = lambda^m state_in + K^T V of the packed chunk. A null state_in is zero; state_out may
// be state_in.
template <typename T>
void UpdateState(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                 const ChunkScratch<T>& scratch, const T* state_in, T* state_out);

// Writes the m output rows. v must be packed. A null state is zero.
template <typename T>
void ChunkOutput(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                 TokenRows<const T> q, TokenRows<const T> k, const T* state,
                 const ChunkScratch<T>& scratch, TokenRows<T> out);

// state_out = lambda^m state_in + added, rounded as UpdateState does it; all [state_elements].
template <typename T>
void AddDecayedState(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                     const T* state_in, const T* added, T* state_out);

// One token by the recurrence, reading and writing each element of the state once: decoding, and
// documents of a few tokens. Rows of the states are state_in_stride and state_out_stride apart; a
// null state_in is zero; state_out may be state_in.
template <typename T>
void TokenStep(const ChunkShape& shape, const DecayPowers<T>& decay, const T* q, const T* k,
               const T* v, const T* state_in, int64_t state_in_stride, T* state_out,
               int64_t state_out_stride, T* out);

}  // namespace evenkeel::lightning
