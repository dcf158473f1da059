#include "parallel/gradient_reducer.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace evenkeel {

GradientReducer::GradientReducer(AxisComm& axis, TensorView gradients, int64_t bucket_elements)
    : axis_(axis),
      gradients_(gradients),
      bucket_elements_(bucket_elements),
      pending_end_(gradients.dim(0)),
      pending_begin_(gradients.dim(0)) {}

void GradientReducer::MarkFinal(int64_t begin, int64_t end) {
  EK_CHECK(end == pending_begin_ && begin <= end) << begin << " " << end << " " << pending_begin_;
  pending_begin_ = begin;
  if (axis_.size() == 1) return;
  while (pending_end_ - pending_begin_ >= bucket_elements_) Start(pending_end_ - bucket_elements_);
  for (Work& work : works_) axis_.Poke(work);
}

void GradientReducer::Start(int64_t begin) {
  works_.push_back(axis_.AllReduceAsync(gradients_.Rows(begin, pending_end_), ReduceOp::kSum,
                                        absl::StrCat("gradient bucket ", works_.size())));
  pending_end_ = begin;
}

void GradientReducer::Finish() {
  EK_CHECK(pending_begin_ == 0) << "gradients below " << pending_begin_ << " were never final";
  if (axis_.size() > 1) {
    if (pending_end_ > 0) Start(0);
    for (Work& work : works_) axis_.Wait(work);
  }
  works_.clear();
  pending_begin_ = pending_end_ = gradients_.dim(0);
}

}  // namespace evenkeel
