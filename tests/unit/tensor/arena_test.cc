#include "runtime/tensor/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "runtime/base/exit_code.h"

namespace evenkeel {
namespace {

constexpr MemoryPurpose kKept = MemoryPurpose::kActivations;
constexpr MemoryPurpose kScratch = MemoryPurpose::kWorkspace;

TEST(Arena, AllocationsAreAlignedAndApart) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(1 << 20, tracker);
  TensorView before = arena.Allocate(DType::kF32, {1}, kKept);
  for (const int64_t n : {1, 3, 16, 17, 0, 100}) {
    const TensorView view = arena.Allocate(DType::kF32, {n}, kKept);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0u);
    EXPECT_GE(static_cast<char*>(view.data),
              static_cast<char*>(before.data) + before.num_elements() * 4);
    std::memset(view.data, 0xff, static_cast<size_t>(n) * 4);
    before = view;
  }
  EXPECT_EQ(arena.bytes_in_use(), 64 * (1 + 1 + 1 + 1 + 2 + 0 + 7));
  EXPECT_EQ(tracker.current(kKept), arena.bytes_in_use());
}

TEST(Arena, MarksNest) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(1 << 20, tracker);
  (void)arena.Allocate(DType::kF64, {8}, kKept);
  const Arena::Mark outer = arena.mark();
  const TensorView a = arena.Allocate(DType::kF64, {16}, kScratch);
  const Arena::Mark inner = arena.mark();
  (void)arena.Allocate(DType::kF64, {32}, kKept);
  (void)arena.Allocate(DType::kF64, {64}, kScratch);
  EXPECT_EQ(tracker.current(kKept), 64 + 256);
  EXPECT_EQ(tracker.current(kScratch), 128 + 512);
  arena.Release(inner);
  EXPECT_EQ(tracker.current(kKept), 64);
  EXPECT_EQ(tracker.current(kScratch), 128);
  arena.Release(inner);  // nothing since: nothing to give back
  EXPECT_EQ(arena.bytes_in_use(), 192);
  arena.Release(outer);
  EXPECT_EQ(arena.bytes_in_use(), 64);
  EXPECT_EQ(arena.Allocate(DType::kF64, {1}, kScratch).data, a.data) << "memory is used again";
  EXPECT_EQ(tracker.peak(kKept), 320);
  EXPECT_EQ(tracker.peak(kScratch), 640);
  EXPECT_EQ(tracker.peak_total(), 960);
}

TEST(Arena, ScopesReleaseInReverse) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(1 << 20, tracker);
  {
    const ArenaScope outer(arena);
    (void)arena.Allocate(DType::kF32, {16}, kKept);
    {
      const ArenaScope inner(arena);
      (void)arena.Allocate(DType::kF32, {16}, kScratch);
      EXPECT_EQ(arena.bytes_in_use(), 128);
    }
    EXPECT_EQ(arena.bytes_in_use(), 64);
  }
  EXPECT_EQ(arena.bytes_in_use(), 0);
  EXPECT_EQ(tracker.current_total(), 0);
}

TEST(Arena, ZeroesMemoryThatWasUsedBefore) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(1 << 20, tracker);
  {
    const ArenaScope scope(arena);
    std::memset(arena.Allocate(DType::kI32, {1000}, kScratch).data, 0x5a, 4000);
  }
  const TensorView zero = arena.AllocateZero(DType::kI32, {10, 100}, kScratch);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(zero.as<int32_t>()[i], 0) << i;
}

TEST(Arena, GivesEverythingBackWhenItGoes) {
  MemoryTracker tracker;
  {
    Arena arena = *Arena::Create(1 << 20, tracker);
    (void)arena.Allocate(DType::kF32, {100}, kKept);
    Arena moved = std::move(arena);
    EXPECT_EQ(arena.bytes_in_use(), 0);  // NOLINT(bugprone-use-after-move): that is what is tested
    EXPECT_EQ(moved.bytes_in_use(), 448);
    EXPECT_EQ(tracker.current_total(), 448);
  }
  EXPECT_EQ(tracker.current_total(), 0);
}

TEST(Arena, ReservesAddressesNotMemory) {
  MemoryTracker tracker;
  const auto arena = Arena::Create(int64_t{1} << 38, tracker);
  EXPECT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ(tracker.current_total(), 0);
  const auto too_much = Arena::Create(int64_t{1} << 62, tracker);
  EXPECT_EQ(too_much.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(too_much.status().message(), "cannot reserve 4294967296.00 GiB of address space");
}

TEST(Arena, IsUsableToTheLastByte) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(4096, tracker);
  (void)arena.Allocate(DType::kF32, {512}, kKept);
  std::memset(arena.Allocate(DType::kF32, {512}, kKept).data, 1, 2048);
  EXPECT_EQ(arena.bytes_in_use(), 4096);
}

TEST(ArenaDeathTest, ExhaustionNamesWhatWasAskedForAndWhereMemoryWent) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(1 << 20, tracker);
  (void)arena.Allocate(DType::kF32, {200, 1024}, kKept);
  EXPECT_EXIT((void)arena.Allocate(DType::kF32, {100, 1024}, kScratch),
              testing::ExitedWithCode(static_cast<int>(ExitCode::kOutOfMemory)),
              "error: out of memory: workspace \\[100, 1024\\] needs 400.0 KiB, of the arena's 1.0 "
              "MiB 800.0 KiB are in use\n"
              "(.|\n)*activations +800.0 KiB +800.0 KiB\n"
              "total +800.0 KiB +800.0 KiB");
}

TEST(ArenaDeathTest, RefusesMarksFromAbove) {
  MemoryTracker tracker;
  Arena arena = *Arena::Create(1 << 20, tracker);
  const Arena::Mark before = arena.mark();
  (void)arena.Allocate(DType::kF32, {16}, kKept);
  const Arena::Mark after = arena.mark();
  arena.Release(before);
  EXPECT_DEATH(arena.Release(after), "check failed");
}

}  // namespace
}  // namespace evenkeel
