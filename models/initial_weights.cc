// Initial weights: a function of (seed, parameter name, element of the whole tensor) alone.
#include <cmath>
#include <vector>

#include "models/parameters.h"
#include "runtime/base/philox.h"
#include "runtime/ops/fill_normal.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {
namespace {

// FNV-1a: the stream of random numbers a parameter draws from.
uint64_t HashName(const std::string& name) {
  uint64_t hash = 14695981039346656037ULL;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

double InitialValue(const ParameterSpec& spec, const Philox& random, int64_t i, int64_t n) {
  const auto at = static_cast<double>(i), size = static_cast<double>(n);
  switch (spec.init) {
    case InitKind::kNormal:
      return spec.init_std * random.Normal(static_cast<uint64_t>(i));
    case InitKind::kZero:
      return 0;
    case InitKind::kOne:
      return 1;
    case InitKind::kLrpeTheta:
      return std::pow(10000.0, -2.0 * at / size);
    case InitKind::kUrpeTheta:
      return std::pow(10000.0, -2.0 * at / (2 * size));
    case InitKind::kUnitVector:
      return random.Normal(static_cast<uint64_t>(i));
  }
  return 0;
}

// Calls body(to, element, count) for what of a parameter is in `owned`: elements [element, element
// + count) of the whole tensor are [to, ...) of what is owned.
template <typename Body>
void ForEachOwnedPiece(const ParameterSpec& spec, const std::vector<RowRange>& owned,
                       const Body& body) {
  ForEachRun(spec, [&](int64_t local, int64_t full, int64_t count) {
    const int64_t run = spec.offset + local;
    ForEachOwnedRun(owned, run, count, [&](int64_t to, int64_t first, int64_t length) {
      body(to, full + first - run, length);
    });
  });
}

// Initial values of elements from `element` on, on the host.
void FillPiece(ThreadPool& pool, uint64_t seed, const ParameterSpec& spec, int64_t element,
               TensorView piece) {
  const Philox random(seed, HashName(spec.name));
  const int64_t n = spec.full_shape.num_elements();
  double scale = 1;
  if (spec.init == InitKind::kUnitVector) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = random.Normal(static_cast<uint64_t>(i));
      sum += x * x;
    }
    scale = 1 / std::sqrt(sum);
  }
  DispatchFloat(piece.dtype, [&]<typename T>() {
    T* const out = piece.as<T>();
    pool.ParallelFor(piece.dim(0), 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(scale * InitialValue(spec, random, element + i, n));
      }
    });
  });
}

}  // namespace

void ParameterLayout::Initialize(ThreadPool& pool, uint64_t seed, TensorView flat) const {
  Initialize(pool, seed, {{0, 0, num_elements()}}, flat);
}

void ParameterLayout::Initialize(ThreadPool& pool, uint64_t seed,
                                 const std::vector<RowRange>& owned, TensorView owned_flat) const {
  for (const ParameterSpec& spec : specs_) {
    ForEachOwnedPiece(spec, owned, [&](int64_t to, int64_t element, int64_t count) {
      FillPiece(pool, seed, spec, element, owned_flat.Rows(to, to + count));
    });
  }
}

absl::Status ParameterLayout::InitializeOnDevice(const OpContext& context, uint64_t seed,
                                                 const std::vector<RowRange>& owned,
                                                 TensorView owned_flat) const {
  if (context.cuda == nullptr) {
    Initialize(context.pool, seed, owned, owned_flat);
    return absl::OkStatus();
  }
  absl::Status status;
  for (const ParameterSpec& spec : specs_) {
    ForEachOwnedPiece(spec, owned, [&](int64_t to, int64_t element, int64_t count) {
      const TensorView piece = owned_flat.Rows(to, to + count);
      if (spec.init == InitKind::kNormal) {
        FillNormal(context, seed, HashName(spec.name), element, spec.init_std, piece);
        return;
      }
      // All others are vectors, or small.
      std::vector<float> values(static_cast<size_t>(count));
      const TensorView host(values.data(), DType::kF32, {count});
      FillPiece(context.pool, seed, spec, element, host);
      status.Update(CopyFromHost(context, host, piece));
    });
  }
  return status;
}

}  // namespace evenkeel
