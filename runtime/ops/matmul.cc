#include "runtime/ops/matmul.h"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/elementwise.h"

namespace evenkeel {
namespace {

// One product that a single call of OpenBLAS computes.
template <typename T>
struct Gemm {
  const T* a = nullptr;
  const T* b = nullptr;
  T* c = nullptr;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  bool transpose_a = false, transpose_b = false;
  int64_t k = 0;
  double beta = 0;

  // Computes rows [row, row + rows) and columns [column, column + columns) of c.
  void Run(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    const T* a_part = a + (transpose_a ? row : row * a_stride);
    const T* b_part = b + (transpose_b ? column * b_stride : column);
    T* c_part = c + row * c_stride + column;
    const auto k_size = static_cast<blasint>(k), n_size = static_cast<blasint>(columns);
    const auto b_leading = static_cast<blasint>(b_stride);
    if (rows == 1 && !transpose_a) {
      // One token of a decode step: b is read once, and packing it first would triple the cost.
      if (beta == 0) std::fill(c_part, c_part + columns, T{0});  // some versions keep a NaN there
      const T factor = beta == 0 ? T{1} : static_cast<T>(beta);
      Gemv(transpose_b ? CblasNoTrans : CblasTrans, transpose_b ? n_size : k_size,
           transpose_b ? k_size : n_size, b_part, b_leading, a_part, factor, c_part);
      return;
    }
    const auto op_a = transpose_a ? CblasTrans : CblasNoTrans;
    const auto op_b = transpose_b ? CblasTrans : CblasNoTrans;
    const auto m_size = static_cast<blasint>(rows), a_leading = static_cast<blasint>(a_stride);
    const auto c_leading = static_cast<blasint>(c_stride);
    if constexpr (std::is_same_v<T, float>) {
      cblas_sgemm(CblasRowMajor, op_a, op_b, m_size, n_size, k_size, 1, a_part, a_leading, b_part,
                  b_leading, static_cast<T>(beta), c_part, c_leading);
    } else {
      cblas_dgemm(CblasRowMajor, op_a, op_b, m_size, n_size, k_size, 1, a_part, a_leading, b_part,
                  b_leading, beta, c_part, c_leading);
    }
  }

 private:
  static void Gemv(CBLAS_TRANSPOSE op, blasint rows, blasint columns, const T* matrix,
                   blasint leading, const T* x, T factor, T* y) {
    if constexpr (std::is_same_v<T, float>) {
      cblas_sgemv(CblasRowMajor, op, rows, columns, 1, matrix, leading, x, 1, factor, y, 1);
    } else {
      cblas_dgemv(CblasRowMajor, op, rows, columns, 1, matrix, leading, x, 1, factor, y, 1);
    }
  }
};

// How c is cut into tiles, each computed by one call over the whole of K.
struct TileGrid {
  int64_t rows = 1;
  int64_t columns = 1;
};

// The cut depends on the shape alone, never on the number of threads: OpenBLAS has other kernels
// for small products, so the same element may round differently in a product cut differently.
// A tile keeps enough work to hide what every call pays for repacking its operands.
TileGrid CutIntoTiles(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kMinTile = 32;
  constexpr int64_t kMinSplitWork = int64_t{1} << 21;  // multiply-adds: tens of microseconds
  constexpr int64_t kMinTileWork = int64_t{1} << 25;   // past the first cut
  constexpr int64_t kMaxTiles = 16;
  TileGrid grid;
  while (grid.rows * grid.columns < kMaxTiles) {
    const int64_t tile_m = m / grid.rows, tile_n = n / grid.columns;
    const int64_t tile_work = tile_m * tile_n * k;
    const bool is_first = grid.rows * grid.columns == 1;
    if (tile_work < (is_first ? kMinSplitWork : 2 * kMinTileWork)) break;
    // Halving the rows repacks b and halving the columns repacks a; the first costs more.
    const bool cut_columns = tile_n * 3 >= tile_m * 2;
    if ((cut_columns ? tile_n : tile_m) < 2 * kMinTile) break;
    (cut_columns ? grid.columns : grid.rows) *= 2;
  }
  return grid;
}

// Bounds of piece `i` of `pieces` of [0, n), multiples of the widest vector.
int64_t PieceBegin(int64_t n, int64_t pieces, int64_t i) {
  constexpr int64_t kAlign = 16;
  return i == pieces ? n : n / kAlign * i / pieces * kAlign;
}

int64_t RowStride(const ConstTensorView& view) {
  // A single row's stride is free; BLAS wants at least the number of columns.
  return view.dim(0) <= 1 ? std::max<int64_t>(1, view.dim(1)) : view.stride(0);
}

template <typename T>
void MatMulOf(const OpContext& context, ConstTensorView a, bool transpose_a, ConstTensorView b,
              bool transpose_b, double beta, TensorView c) {
  const int64_t m = c.dim(0), n = c.dim(1), k = a.dim(transpose_a ? 0 : 1);
  Gemm<T> gemm;
  gemm.a = a.as<T>();
  gemm.b = b.as<T>();
  gemm.c = c.as<T>();
  gemm.a_stride = RowStride(a);
  gemm.b_stride = RowStride(b);
  gemm.c_stride = RowStride(c);
  gemm.transpose_a = transpose_a;
  gemm.transpose_b = transpose_b;
  gemm.k = k;
  gemm.beta = beta;
  if (m == 0 || n == 0) return;
  if (k == 0) {  // an empty sum: a and b may have no memory at all
    for (int64_t i = 0; i < m; ++i) {
      T* row = gemm.c + i * gemm.c_stride;
      for (int64_t j = 0; j < n; ++j) row[j] = beta == 0 ? T{0} : static_cast<T>(beta) * row[j];
    }
    return;
  }
  const TileGrid grid = CutIntoTiles(m, n, k);
  context.pool.ParallelForEach(grid.rows * grid.columns, [&](int64_t tile) {
    const int64_t i = tile / grid.columns, j = tile % grid.columns;
    const int64_t row = PieceBegin(m, grid.rows, i), column = PieceBegin(n, grid.columns, j);
    gemm.Run(row, PieceBegin(m, grid.rows, i + 1) - row, column,
             PieceBegin(n, grid.columns, j + 1) - column);
  });
}

}  // namespace

void MatMul(const OpContext& context, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, double beta, TensorView c) {
  EK_TRACE_ON_CUDA(context, MatMul, a, transpose_a, b, transpose_b, beta, c)
  // The pool's threads call OpenBLAS side by side; its own threads would only fight over the cores.
  static const bool is_single_threaded = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  (void)is_single_threaded;
  const bool ta = transpose_a == Transpose::kYes, tb = transpose_b == Transpose::kYes;
  EK_CHECK(a.rank() == 2 && b.rank() == 2 && c.rank() == 2 && a.dim(ta) == c.dim(0) &&
           b.dim(!tb) == c.dim(1) && a.dim(!ta) == b.dim(tb))
      << a.shape.ToString() << (ta ? "^T " : " ") << b.shape.ToString() << (tb ? "^T" : "")
      << " -> " << c.shape.ToString();
  for (const ConstTensorView& view : {a, b, ConstTensorView(c)}) {
    EK_CHECK(std::max(view.dim(0), RowStride(view)) <= std::numeric_limits<blasint>::max())
        << view.shape.ToString();
  }
  DispatchFloat(c.dtype, [&]<typename T>() { MatMulOf<T>(context, a, ta, b, tb, beta, c); });
}

void LinearForward(const OpContext& context, ConstTensorView x, ConstTensorView w,
                   ConstTensorView bias, ConstTensorView residual, TensorView y) {
  EK_TRACE_ON_CUDA(context, LinearForward, x, w, bias, residual, y)
  if (!residual.empty() && residual.data != y.data) Copy(context, residual, y);
  MatMul(context, x, Transpose::kNo, w, Transpose::kYes, residual.empty() ? 0 : 1, y);
  if (!bias.empty()) AddBias(context, bias, y);
}

std::string DescribeBlas() {
  return openblas_get_config();
}

}  // namespace evenkeel
