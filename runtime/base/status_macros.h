// Macros that return early on a non-OK absl::Status.
#pragma once

#include <utility>

#include "absl/base/optimization.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Evaluates `expr` (an absl::Status) and returns it from the enclosing function if it is not OK.
#define EK_RETURN_IF_ERROR(expr)                                                                   \
  do {                                                                                             \
    if (absl::Status ek_status_ = (expr); ABSL_PREDICT_FALSE(!ek_status_.ok())) return ek_status_; \
  } while (false)

#define EK_CONCAT_INNER(a, b) a##b
#define EK_CONCAT(a, b) EK_CONCAT_INNER(a, b)

// Evaluates `expr` (an absl::StatusOr<T>); assigns the value to `lhs`, or returns the error.
#define EK_ASSIGN_OR_RETURN(lhs, expr) \
  EK_ASSIGN_OR_RETURN_IMPL(EK_CONCAT(ek_or_, __LINE__), lhs, expr)
#define EK_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr)                     \
  auto tmp = (expr);                                                 \
  if (ABSL_PREDICT_FALSE(!tmp.ok())) return std::move(tmp).status(); \
  lhs = *std::move(tmp)
