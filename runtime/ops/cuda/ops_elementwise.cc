#include "runtime/ops/cuda/activation_cuda.h"
#include "runtime/ops/cuda/add_cuda.h"
#include "runtime/ops/cuda/bias_cuda.h"
#include "runtime/ops/cuda/convert_cuda.h"
#include "runtime/ops/cuda/cuda_op_context.h"
#include "runtime/ops/cuda/cuda_ops.h"
#include "runtime/ops/cuda/fill_normal_cuda.h"
#include "runtime/ops/cuda/sum_cuda.h"

namespace evenkeel::cuda {
namespace {

// A view as rows of `width` bytes that are `pitch` bytes apart: dense as one row.
struct ByteRows {
  size_t pitch = 0, width = 0, rows = 0;
};

ByteRows BytesOf(const ConstTensorView& view) {
  const auto element = static_cast<size_t>(SizeOf(view.dtype));
  const auto count = static_cast<size_t>(view.num_elements());
  if (count == 0) return {};  // a rank without tokens
  if (view.is_dense()) return {count * element, count * element, 1};
  EK_CHECK(view.rank() == 2 || (view.rank() == 3 && view.stride(1) == view.dim(2)))
      << view.shape.ToString();
  const auto rows = static_cast<size_t>(view.dim(0));
  return {static_cast<size_t>(view.stride(0)) * element, count / rows * element, rows};
}

// Columns of a row of a [T, C] view, or of a [T, H, D] view whose heads are dense.
int64_t RowColumns(const ConstTensorView& view) {
  EK_CHECK(view.rank() == 2 || view.dim(1) == 1 || view.stride(1) == view.dim(2))
      << view.shape.ToString();
  return view.rank() == 2 ? view.dim(1) : view.dim(1) * view.dim(2);
}

void CheckBf16(const ConstTensorView& view) {
  EK_CHECK(view.dtype == DType::kBF16 && view.device == Device::kCuda) << view.shape.ToString();
}

ActivationParams ParamsOf(Activation activation, const ConstTensorView& x, const TensorView& y) {
  CheckBf16(x);
  CheckBf16(y);
  ActivationParams params;
  params.activation = activation;
  params.tokens = x.dim(0);
  params.columns = RowColumns(x);
  params.x = x.data;
  params.y = y.data;
  params.x_stride = x.stride(0);
  params.y_stride = y.stride(0);
  return params;
}

}  // namespace

void SetZero(const OpContext& context, TensorView x) {
  const ByteRows bytes = BytesOf(x);
  if (bytes.rows == 0 || bytes.width == 0) return;
  Note(context,
       cudaMemset2DAsync(x.data, bytes.pitch, 0, bytes.width, bytes.rows, StreamOf(context)),
       "SetZero");
}

void FillNormal(const OpContext& context, uint64_t seed, uint64_t stream, int64_t first,
                double scale, TensorView y) {
  EK_CHECK(y.dtype == DType::kF32) << y.shape.ToString();
  const FillNormalParams params{seed, stream, first, scale, y.num_elements(), y.as<float>()};
  Note(context, LaunchFillNormal(params, StreamOf(context)), "FillNormal");
}

void Copy(const OpContext& context, ConstTensorView x, TensorView y) {
  EK_CHECK(x.shape == y.shape) << x.shape.ToString() << " -> " << y.shape.ToString();
  if (x.dtype != y.dtype) {
    ConvertParams params;
    params.x = x.data;
    params.y = y.data;
    if (x.is_dense() && y.is_dense()) {
      params.rows = 1;
      params.columns = x.num_elements();
      params.x_stride = params.y_stride = 0;
    } else {
      EK_CHECK(x.rank() == 2) << "conversion of strided " << x.shape.ToString();
      params.rows = x.dim(0);
      params.columns = x.dim(1);
      params.x_stride = x.stride(0);
      params.y_stride = y.stride(0);
    }
    if (x.dtype == DType::kF32 && y.dtype == DType::kBF16) {
      return Note(context, LaunchFloatToBf16(params, StreamOf(context)), "Copy");
    }
    EK_CHECK(x.dtype == DType::kBF16 && y.dtype == DType::kF32) << "no such conversion";
    return Note(context, LaunchBf16ToFloat(params, StreamOf(context)), "Copy");
  }
  ByteRows from = BytesOf(x), to = BytesOf(y);
  if (from.rows == 0 || from.width == 0) return;
  // One of them dense: as many rows as the other.
  if (from.rows == 1 && to.rows > 1) from = {to.width, to.width, to.rows};
  if (to.rows == 1 && from.rows > 1) to = {from.width, from.width, from.rows};
  Note(context,
       cudaMemcpy2DAsync(y.data, to.pitch, x.data, from.pitch, from.width, from.rows,
                         cudaMemcpyDeviceToDevice, StreamOf(context)),
       "Copy");
}

namespace {

// y = a + b as one long row where all three are dense, else row by row.
void AddTo(const OpContext& context, const ConstTensorView& a, const ConstTensorView& b,
           const TensorView& y, const char* op) {
  EK_CHECK(a.shape == y.shape && b.shape == y.shape)
      << a.shape.ToString() << " + " << b.shape.ToString() << " -> " << y.shape.ToString();
  const auto is_float = [](const ConstTensorView& view) {
    EK_CHECK(view.dtype == DType::kF32 || view.dtype == DType::kBF16) << view.shape.ToString();
    return view.dtype == DType::kF32;
  };
  AddParams params;
  params.float_a = is_float(a);
  params.float_b = is_float(b);
  params.a = a.data;
  params.b = b.data;
  params.y = y.data;
  if (a.is_dense() && b.is_dense() && y.is_dense()) {
    params.rows = 1;
    params.columns = y.num_elements();
    params.a_stride = params.b_stride = params.y_stride = 0;
  } else {
    params.rows = y.dim(0);
    params.columns = RowColumns(y);
    EK_CHECK(RowColumns(a) == params.columns && RowColumns(b) == params.columns);
    params.a_stride = a.stride(0);
    params.b_stride = b.stride(0);
    params.y_stride = y.stride(0);
  }
  Note(context, LaunchAdd(params, StreamOf(context)), op);
}

}  // namespace

void Add(const OpContext& context, ConstTensorView a, ConstTensorView b, TensorView y) {
  EK_CHECK(a.dtype == y.dtype && b.dtype == y.dtype) << y.shape.ToString();
  AddTo(context, a, b, y, "Add");
}

void AddWide(const OpContext& context, ConstTensorView x, TensorView sum) {
  EK_CHECK(sum.dtype == DType::kF32) << sum.shape.ToString();
  AddTo(context, sum, x, sum, "AddWide");
}

void BiasBackward(const OpContext& context, ConstTensorView dy, TensorView dbias) {
  CheckBf16(dy);
  const ArenaScope scope(context.arena);
  BiasBackwardParams params;
  params.tokens = dy.dim(0);
  params.columns = dy.dim(1);
  params.dy = dy.data;
  params.dy_stride = dy.stride(0);
  params.dbias = dbias.as<float>();
  params.workspace = Scratch(context, BiasBackwardWorkspaceBytes(params.tokens, params.columns));
  Note(context, LaunchBiasBackward(params, StreamOf(context)), "BiasBackward");
}

namespace {

void AddToSum(const OpContext& context, const ConstTensorView& x, bool squares,
              const TensorView& sum) {
  EK_CHECK(x.is_dense()) << x.shape.ToString();
  const ArenaScope scope(context.arena);
  SumParams params;
  params.n = x.num_elements();
  params.x = x.as<float>();
  params.squares = squares;
  params.accumulate = true;
  params.sum = sum.as<double>();
  params.workspace = Scratch(context, SumWorkspaceBytes(params.n));
  Note(context, LaunchSum(params, StreamOf(context)), squares ? "AddSquares" : "AddSum");
}

}  // namespace

void AddSum(const OpContext& context, ConstTensorView x, TensorView sum) {
  AddToSum(context, x, /*squares=*/false, sum);
}

void AddSquares(const OpContext& context, ConstTensorView x, TensorView sum) {
  AddToSum(context, x, /*squares=*/true, sum);
}

void ActivationForward(const OpContext& context, Activation activation, ConstTensorView x,
                       TensorView y) {
  Note(context, LaunchActivation(ParamsOf(activation, x, y), StreamOf(context)),
       "ActivationForward");
}

void ActivationBackward(const OpContext& context, Activation activation, ConstTensorView x,
                        ConstTensorView dy, TensorView dx) {
  CheckBf16(dy);
  ActivationParams params = ParamsOf(activation, x, dx);
  params.dy = dy.data;
  params.dy_stride = dy.stride(0);
  Note(context, LaunchActivation(params, StreamOf(context)), "ActivationBackward");
}

void GatedUnitForward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                      TensorView h) {
  CheckBf16(pair);
  GatedUnitParams params;
  params.unit = unit;
  params.tokens = h.dim(0);
  params.columns = h.dim(1);
  params.pair = pair.data;
  params.h = h.data;
  params.pair_stride = pair.stride(0);
  params.h_stride = h.stride(0);
  Note(context, LaunchGatedUnitForward(params, StreamOf(context)), "GatedUnitForward");
}

void GatedUnitBackward(const OpContext& context, GatedUnit unit, ConstTensorView pair,
                       ConstTensorView dh, TensorView dpair, TensorView h) {
  CheckBf16(pair);
  CheckBf16(dh);
  GatedUnitParams params;
  params.unit = unit;
  params.tokens = dh.dim(0);
  params.columns = dh.dim(1);
  params.pair = pair.data;
  params.dh = dh.data;
  params.dpair = dpair.data;
  params.pair_stride = pair.stride(0);
  params.dh_stride = dh.stride(0);
  params.dpair_stride = dpair.stride(0);
  if (!h.empty()) {
    params.h = h.data;
    params.h_stride = h.stride(0);
  }
  Note(context, LaunchGatedUnitBackward(params, StreamOf(context)), "GatedUnitBackward");
}

}  // namespace evenkeel::cuda
