#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace evenkeel {

GradientReducer::GradientReducer(Communicator& comm, TensorView gradients, int64_t bucket_elements)
    : comm_(comm),
      gradients_(gradients),
      bucket_elements_(bucket_elements),
      pending_end_(gradients.dim(0)),
      pending_begin_(gradients.dim(0)) {}

void GradientReducer::MarkFinal(int64_t begin, int64_t end) {
  EK_CHECK(end == pending_begin_ && begin <= end) << begin << " " << end << " " << pending_begin_;
  pending_begin_ = begin;
  if (comm_.size() == 1) return;
  while (pending_end_ - pending_begin_ >= bucket_elements_) Start(pending_end_ - bucket_elements_);
  for (Work& work : works_) (void)work.Test();
}

void GradientReducer::Start(int64_t begin) {
  works_.push_back(comm_.AllReduceAsync(gradients_.Rows(begin, pending_end_), ReduceOp::kSum,
                                        absl::StrCat("gradient bucket ", works_.size())));
  pending_end_ = begin;
}

absl::Status GradientReducer::Finish() {
  EK_CHECK(pending_begin_ == 0) << "gradients below " << pending_begin_ << " were never final";
  absl::Status status;
  if (comm_.size() > 1) {
    const auto start = std::chrono::steady_clock::now();
    if (pending_end_ > 0) Start(0);
    for (Work& work : works_) status.Update(work.Wait());
    exposed_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  works_.clear();
  pending_begin_ = pending_end_ = gradients_.dim(0);
  return status;
}

}  // namespace evenkeel
