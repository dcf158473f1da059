#include "attention/kernels/lightning_chunk.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/kernels/lightning_tile.h"
#include "runtime/base/simd.h"

namespace evenkeel::lightning {
namespace {

using simd::kLanes;
using simd::Load;
using simd::Splat;
using simd::Store;
using simd::Vec;

// Whole vectors and whole tiles.
template <typename T>
int64_t Padded(int64_t n) {
  constexpr int64_t kUnit = std::max<int64_t>(kLanes<T>, kTileRows);
  return (n + kUnit - 1) / kUnit * kUnit;
}

template <typename T>
int64_t OddVectors(int64_t padded) {
  return (padded / kLanes<T> | 1) * kLanes<T>;
}

// The first n lanes of p, zeros in the others.
template <typename T>
Vec<T> LoadPart(const T* p, int64_t n) {
  T lanes[kLanes<T>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return Load(lanes);
}

template <typename T>
void StorePart(T* p, Vec<T> x, int64_t n) {
  std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(T));
}

// Copies m rows of `size` elements, row t scaled by scale(t); pads columns to whole vectors and
// rows to whole tiles with zeros.
template <typename T, typename Scale>
void PackRows(TokenRows<const T> rows, int64_t m, int64_t size, int64_t stride, Scale scale,
              T* to) {
  const int64_t whole = size / kLanes<T> * kLanes<T>, padded = Padded<T>(size);
  for (int64_t t = 0; t < m; ++t) {
    const T* from = rows.data + t * rows.stride;
    T* row = to + t * stride;
    const Vec<T> factor = Splat<T>(scale(t));
    int64_t d = 0;
    for (; d < whole; d += kLanes<T>) Store(row + d, Load(from + d) * factor);
    if (d < size) {
      Store(row + d, LoadPart(from + d, size - d) * factor);
      d += kLanes<T>;
    }
    for (; d < padded; d += kLanes<T>) Store(row + d, Vec<T>{});
  }
  const int64_t padded_rows = (m + kTileRows - 1) / kTileRows * kTileRows;
  std::memset(to + m * stride, 0, static_cast<size_t>((padded_rows - m) * stride) * sizeof(T));
}

// Writes the transpose of m rows of `size` elements; pads rows and columns with zeros.
template <typename T>
void PackTransposed(TokenRows<const T> rows, int64_t m, int64_t size, int64_t stride, T* to) {
  constexpr int64_t kBlock = kLanes<T>;
  for (int64_t t0 = 0; t0 < m; t0 += kBlock) {
    for (int64_t d0 = 0; d0 < size; d0 += kBlock) {
      const T* from = rows.data + t0 * rows.stride + d0;
      Vec<T> block[kBlock];
      if (t0 + kBlock <= m && d0 + kBlock <= size) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kBlock; ++i) block[i] = Load(from + i * rows.stride);
      } else {
        for (int64_t i = 0; i < kBlock; ++i) {
          block[i] =
              t0 + i < m ? LoadPart(from + i * rows.stride, std::min(kBlock, size - d0)) : Vec<T>{};
        }
      }
      TransposeBlock<T>(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kBlock; ++i) Store(to + (d0 + i) * stride + t0, block[i]);
    }
  }
}

// Calls body.operator()<vectors>(first column) over `padded` columns, two vectors at a time.
template <typename T, typename Body>
[[gnu::always_inline]] inline void ForColumnPanels(int64_t padded, Body&& body) {
  int64_t column = 0;
  for (; column + 2 * kLanes<T> <= padded; column += 2 * kLanes<T>) {
    body.template operator()<2>(column);
  }
  if (column < padded) body.template operator()<1>(column);
}

// P at and below the diagonal; the vectors that hold the diagonal are zero above it.
template <typename T>
void Scores(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
            const ChunkScratch<T>& scratch) {
  ForColumnPanels<T>(Padded<T>(m), [&]<int kVectors>(int64_t s0) {
    for (int64_t t0 = s0 / kTileRows * kTileRows; t0 < m; t0 += kTileRows) {
      Tile<T, kVectors> tile;
      MultiplyAdd<LeftLayout::kRowMajor>(scratch.q + t0 * shape.key_stride, shape.key_stride,
                                         scratch.k_transposed + s0, shape.token_stride,
                                         shape.key_size, tile);
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
          const int64_t s = s0 + j * kLanes<T>;
          Store(scratch.scores + (t0 + i) * shape.token_stride + s,
                tile.sum[i][j] * Load(decay.power + s - t0 - i));
        }
      }
    }
  });
}

}  // namespace

template <typename T>
ChunkShape MakeChunkShape(int64_t tokens, int64_t key_size, int64_t value_size) {
  ChunkShape shape;
  shape.max_tokens = Padded<T>(tokens);
  shape.key_size = key_size;
  shape.value_size = value_size;
  shape.padded_key_size = Padded<T>(key_size);
  shape.key_stride = OddVectors<T>(shape.padded_key_size);
  shape.value_stride = OddVectors<T>(Padded<T>(value_size));
  shape.token_stride = OddVectors<T>(shape.max_tokens);
  return shape;
}

template <typename T>
DecayPowers<T> MakeDecayPowers(double slope, int64_t shift, int64_t max_tokens, T* storage) {
  T* power = storage + max_tokens;
  power[0] = 1;  // also of an infinite slope
  for (int64_t n = 1; n <= max_tokens; ++n) {
    power[-n] = static_cast<T>(std::exp(-slope * static_cast<double>(n)));
  }
  std::fill(power + 1, power + max_tokens + 1, T{0});
  return {power, shift};
}

template <typename T>
int64_t ChunkScratch<T>::NumElements(const ChunkShape& shape) {
  return shape.max_tokens * (2 * shape.key_stride + shape.value_stride + shape.token_stride) +
         shape.padded_key_size * (shape.token_stride + shape.value_stride);
}

template <typename T>
ChunkScratch<T> ChunkScratch<T>::At(const ChunkShape& shape, T* storage) {
  ChunkScratch scratch;
  scratch.q = storage;
  scratch.k_decayed = scratch.q + shape.max_tokens * shape.key_stride;
  scratch.k_transposed = scratch.k_decayed + shape.max_tokens * shape.key_stride;
  scratch.v = scratch.k_transposed + shape.padded_key_size * shape.token_stride;
  scratch.scores = scratch.v + shape.max_tokens * shape.value_stride;
  scratch.state = scratch.scores + shape.max_tokens * shape.token_stride;
  return scratch;
}

template <typename T>
void PackForState(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                  TokenRows<const T> k, TokenRows<const T> v, const ChunkScratch<T>& scratch) {
  const T* power_of_row = decay.power - (m - 1 + decay.shift);
  PackRows(
      k, m, shape.key_size, shape.key_stride, [&](int64_t t) { return power_of_row[t]; },
      scratch.k_decayed);
  PackRows(
      v, m, shape.value_size, shape.value_stride, [](int64_t) { return T{1}; }, scratch.v);
}

template <typename T>
void UpdateState(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                 const ChunkScratch<T>& scratch, const T* state_in, T* state_out) {
  const T chunk_decay = decay.power[-m];
  ForColumnPanels<T>(Padded<T>(shape.value_size), [&]<int kVectors>(int64_t e0) {
    for (int64_t d0 = 0; d0 < shape.padded_key_size; d0 += kTileRows) {
      Tile<T, kVectors> tile;
      MultiplyAdd<LeftLayout::kColumnMajor>(scratch.k_decayed + d0, shape.key_stride,
                                            scratch.v + e0, shape.value_stride, m, tile);
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
          const int64_t at = (d0 + i) * shape.value_stride + e0 + j * kLanes<T>;
          Store(state_out + at, state_in == nullptr
                                    ? tile.sum[i][j]
                                    : DecayedSum(chunk_decay, Load(state_in + at), tile.sum[i][j]));
        }
      }
    }
  });
}

template <typename T>
void ChunkOutput(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                 TokenRows<const T> q, TokenRows<const T> k, const T* state,
                 const ChunkScratch<T>& scratch, TokenRows<T> out) {
  PackRows(
      q, m, shape.key_size, shape.key_stride, [](int64_t) { return T{1}; }, scratch.q);
  PackTransposed(k, m, shape.key_size, shape.token_stride, scratch.k_transposed);
  Scores(shape, m, decay, scratch);
  ForColumnPanels<T>(Padded<T>(shape.value_size), [&]<int kVectors>(int64_t e0) {
    for (int64_t t0 = 0; t0 < m; t0 += kTileRows) {
      Tile<T, kVectors> tile;
      const int64_t rows = std::min<int64_t>(kTileRows, m - t0);
      if (state != nullptr) {
        MultiplyAdd<LeftLayout::kRowMajor>(scratch.q + t0 * shape.key_stride, shape.key_stride,
                                           state + e0, shape.value_stride, shape.key_size, tile);
        const T* power_of_row = decay.power - (t0 + 1 - decay.shift);
#pragma GCC unroll 8
        for (int i = 0; i < kTileRows; ++i) {
          const T power = power_of_row[-i];
#pragma GCC unroll 2
          for (int j = 0; j < kVectors; ++j) tile.sum[i][j] *= power;
        }
      }
      MultiplyAdd<LeftLayout::kRowMajor>(scratch.scores + t0 * shape.token_stride,
                                         shape.token_stride, scratch.v + e0, shape.value_stride,
                                         t0 + rows, tile);
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) {
        if (i >= rows) break;
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
          const int64_t e = e0 + j * kLanes<T>;
          T* to = out.data + (t0 + i) * out.stride + e;
          if (e + kLanes<T> <= shape.value_size) {
            Store(to, tile.sum[i][j]);
          } else if (e < shape.value_size) {
            StorePart(to, tile.sum[i][j], shape.value_size - e);
          }
        }
      }
    }
  });
}

template <typename T>
void AddDecayedState(const ChunkShape& shape, int64_t m, const DecayPowers<T>& decay,
                     const T* state_in, const T* added, T* state_out) {
  const T chunk_decay = decay.power[-m];
  for (int64_t i = 0; i < shape.state_elements(); i += kLanes<T>) {
    Store(state_out + i, DecayedSum(chunk_decay, Load(state_in + i), Load(added + i)));
  }
}

template <typename T>
void TokenStep(const ChunkShape& shape, const DecayPowers<T>& decay, const T* q, const T* k,
               const T* v, const T* state_in, int64_t state_in_stride, T* state_out,
               int64_t state_out_stride, T* out) {
  const T before = decay.power[decay.shift - 1], after = decay.power[-decay.shift];
  const auto step = [&]<int kVectors>(int64_t e0, int64_t size, auto load, auto store) {
    Vec<T> value[kVectors], sum[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      value[j] = load(v + e0 + j * kLanes<T>, size);
      sum[j] = Vec<T>{};
    }
    for (int64_t d = 0; d < shape.key_size; ++d) {
      const T* in = state_in + d * state_in_stride + e0;
      T* to = state_out + d * state_out_stride + e0;
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        Vec<T> s = k[d] * value[j];
        if (state_in != nullptr) s = DecayedSum(before, load(in + j * kLanes<T>, size), s);
        sum[j] += q[d] * s;
        store(to + j * kLanes<T>, after * s, size);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(out + e0 + j * kLanes<T>, sum[j], size);
  };
  const auto load = [](const T* p, int64_t) { return Load(p); };
  const auto store = [](T* p, Vec<T> x, int64_t) { Store(p, x); };
  int64_t e = 0;
  for (; e + 4 * kLanes<T> <= shape.value_size; e += 4 * kLanes<T>) {
    step.template operator()<4>(e, 0, load, store);
  }
  for (; e + kLanes<T> <= shape.value_size; e += kLanes<T>) {
    step.template operator()<1>(e, 0, load, store);
  }
  if (e < shape.value_size) {
    step.template operator()<1>(e, shape.value_size - e, LoadPart<T>, StorePart<T>);
  }
}

#define EK_INSTANTIATE_LIGHTNING_CHUNK(T)                                                          \
  template ChunkShape MakeChunkShape<T>(int64_t, int64_t, int64_t);                                \
  template DecayPowers<T> MakeDecayPowers(double, int64_t, int64_t, T*);                           \
  template struct ChunkScratch<T>;                                                                 \
  template void PackForState(const ChunkShape&, int64_t, const DecayPowers<T>&,                    \
                             TokenRows<const T>, TokenRows<const T>, const ChunkScratch<T>&);      \
  template void UpdateState(const ChunkShape&, int64_t, const DecayPowers<T>&,                     \
                            const ChunkScratch<T>&, const T*, T*);                                 \
  template void ChunkOutput(const ChunkShape&, int64_t, const DecayPowers<T>&, TokenRows<const T>, \
                            TokenRows<const T>, const T*, const ChunkScratch<T>&, TokenRows<T>);   \
  template void AddDecayedState(const ChunkShape&, int64_t, const DecayPowers<T>&, const T*,       \
                                const T*, T*);                                                     \
  template void TokenStep(const ChunkShape&, const DecayPowers<T>&, const T*, const T*, const T*,  \
                          const T*, int64_t, T*, int64_t, T*);

EK_INSTANTIATE_LIGHTNING_CHUNK(float)
EK_INSTANTIATE_LIGHTNING_CHUNK(double)
#undef EK_INSTANTIATE_LIGHTNING_CHUNK

}  // namespace evenkeel::lightning
