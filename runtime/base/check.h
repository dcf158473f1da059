// Checks of our own invariants. A failed check is a bug in this program, never the user's fault:
// it prints where and what, and aborts. What users can get wrong is reported by absl::Status.
#pragma once

#include <sstream>

namespace evenkeel {

// Collects the message of a failed check and aborts when it goes out of scope.
class CheckFailure {
 public:
  CheckFailure(const char* condition, const char* file, int line);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

}  // namespace evenkeel

// Aborts with a message if `condition` is false. On in all builds.
#define EK_CHECK(condition) \
  while (!(condition)) ::evenkeel::CheckFailure(#condition, __FILE__, __LINE__).stream()

// The same for costly conditions on hot paths: compiled out of release builds.
#ifdef NDEBUG
#define EK_DCHECK(condition) \
  while (false && !(condition)) ::evenkeel::CheckFailure(#condition, __FILE__, __LINE__).stream()
#else
#define EK_DCHECK(condition) EK_CHECK(condition)
#endif
