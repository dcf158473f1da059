#include "runtime/comm/transfer_size.h"

#include "absl/strings/str_cat.h"

namespace evenkeel {

const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF64:
      return "f64";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kF8E4M3:
      return "f8_e4m3";
    case DType::kF8E5M2:
      return "f8_e5m2";
  }
  return "";
}

std::string DescribeSize(ConstTensorView view) {
  return absl::StrCat(view.num_elements(), " x ", NameOf(view.dtype));
}

int64_t BytesOf(ConstTensorView view) {
  return view.num_elements() * SizeOf(view.dtype);
}

int64_t RowElements(ConstTensorView view) {
  int64_t elements = 1;
  for (int i = 1; i < view.rank(); ++i) elements *= view.dim(i);
  return elements;
}

int64_t RowBytes(ConstTensorView view) {
  return RowElements(view) * SizeOf(view.dtype);
}

std::vector<int64_t> RowOffsets(absl::Span<const int64_t> rows) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t n : rows) {
    EK_CHECK(n >= 0) << n << " rows of rank " << offsets.size() - 1;
    offsets.push_back(offsets.back() + n);
  }
  return offsets;
}

}  // namespace evenkeel
