// Non-owning views of tensors, for host code: kernels take plain Params structs instead.
// Shapes and strides count elements, not bytes.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "runtime/base/check.h"

namespace evenkeel {

// kF8E4M3 and kF8E5M2: operands of matrix products on GPUs (runtime/ops/fp8.h), and nothing else.
enum class DType : uint8_t { kF32, kF64, kBF16, kI32, kI64, kF8E4M3, kF8E5M2 };
enum class Device : uint8_t { kCpu, kCuda };

inline int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF64:
      return 8;
    case DType::kBF16:
      return 2;
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      return 1;
  }
  return 0;
}

// Of statistics and sums beside values of `dtype`: float32 beside bf16, else the same.
inline DType WideDType(DType dtype) {
  return dtype == DType::kBF16 ? DType::kF32 : dtype;
}

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};

// Row-major dimensions, at most kMaxRank of them, outermost first.
struct Shape {
  static constexpr int kMaxRank = 5;

  int rank = 0;
  std::array<int64_t, kMaxRank> dims = {};

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    EK_CHECK(sizes.size() <= kMaxRank);
    for (int64_t size : sizes) dims[static_cast<size_t>(rank++)] = size;
  }

  int64_t operator[](int i) const { return dims[static_cast<size_t>(i)]; }
  int64_t num_elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= (*this)[i];
    return n;
  }
  bool operator==(const Shape& other) const { return rank == other.rank && dims == other.dims; }
  // "[4, 16, 128]"
  std::string ToString() const;
};

// A view of memory that someone else owns. `Void` is `void` or `const void`. The innermost
// dimension is always dense (stride 1); the others may be strided, as the q, k and v columns of a
// fused projection are. An empty view (data == nullptr) stands for an absent optional tensor.
template <typename Void>
struct BasicTensorView {
  static_assert(std::is_void_v<Void>);
  template <typename T>
  using Pointer = std::conditional_t<std::is_const_v<Void>, const T*, T*>;

  Void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  Shape shape;
  std::array<int64_t, Shape::kMaxRank> strides = {};

  BasicTensorView() = default;
  // A dense view of `shape` at `data`.
  BasicTensorView(Void* data_in, DType dtype_in, Shape shape_in, Device device_in = Device::kCpu)
      : data(data_in), dtype(dtype_in), device(device_in), shape(shape_in) {
    int64_t stride = 1;
    for (int i = shape.rank - 1; i >= 0; --i) {
      strides[static_cast<size_t>(i)] = stride;
      stride *= shape[i];
    }
  }

  // A mutable view converts to a const view, never the other way round.
  // NOLINTNEXTLINE(google-explicit-constructor)
  operator BasicTensorView<const void>() const requires(!std::is_const_v<Void>) {
    BasicTensorView<const void> view;
    view.data = data;
    view.dtype = dtype;
    view.device = device;
    view.shape = shape;
    view.strides = strides;
    return view;
  }

  bool empty() const { return data == nullptr; }
  int rank() const { return shape.rank; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t stride(int i) const { return strides[static_cast<size_t>(i)]; }
  int64_t num_elements() const { return shape.num_elements(); }

  // Returns the first element; the dtype must be T's.
  template <typename T>
  Pointer<T> as() const {
    EK_CHECK(empty() || dtype == DTypeOf<T>::value) << "wrong dtype for " << shape.ToString();
    return static_cast<Pointer<T>>(data);
  }

  bool is_dense() const {
    int64_t stride = 1;
    for (int i = shape.rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[static_cast<size_t>(i)] != stride) return false;
      stride *= shape[i];
    }
    return true;
  }

  // Returns the part with index [begin, end) in dimension `i`.
  BasicTensorView Slice(int i, int64_t begin, int64_t end) const {
    EK_CHECK(0 <= begin && begin <= end && end <= dim(i))
        << "slice [" << begin << ", " << end << ") of dimension " << i << " of "
        << shape.ToString();
    BasicTensorView view = *this;
    if (data != nullptr) {
      view.data = static_cast<Pointer<char>>(data) + begin * stride(i) * SizeOf(dtype);
    }
    view.shape.dims[static_cast<size_t>(i)] = end - begin;
    return view;
  }
  BasicTensorView Rows(int64_t begin, int64_t end) const { return Slice(0, begin, end); }
  BasicTensorView Columns(int64_t begin, int64_t end) const {
    return Slice(shape.rank - 1, begin, end);
  }

  // Returns a dense view of the same elements under another shape; this view must be dense.
  BasicTensorView Reshape(Shape to) const {
    EK_CHECK(is_dense() && to.num_elements() == num_elements())
        << shape.ToString() << " as " << to.ToString();
    return BasicTensorView(data, dtype, to, device);
  }

  // Views [T, H * D] as [T, H, D]; rows may be strided.
  BasicTensorView SplitHeads(int64_t heads) const {
    EK_CHECK(shape.rank == 2 && dim(1) % heads == 0)
        << shape.ToString() << " in " << heads << " heads";
    BasicTensorView view = *this;
    view.shape = Shape{dim(0), heads, dim(1) / heads};
    view.strides = {stride(0), dim(1) / heads, 1};
    return view;
  }

  // Views [T, H, D] whose heads are adjacent as [T, H * D].
  BasicTensorView MergeHeads() const {
    EK_CHECK(shape.rank == 3 && (dim(1) == 1 || stride(1) == dim(2))) << shape.ToString();
    BasicTensorView view = *this;
    view.shape = Shape{dim(0), dim(1) * dim(2)};
    view.strides = {stride(0), 1};
    return view;
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

// Calls body.operator()<float>() or <double>() after `dtype`. Other types are a bug of the caller.
template <typename Body>
decltype(auto) DispatchFloat(DType dtype, Body&& body) {
  EK_CHECK(dtype == DType::kF32 || dtype == DType::kF64)
      << "not a floating type of the CPU backend";
  if (dtype == DType::kF64) return body.template operator()<double>();
  return body.template operator()<float>();
}

}  // namespace evenkeel
