// How many tokens per second does lightning attention reach on the CPU, and does it keep them as
// the sequence grows? Prints a line for each shape and number of threads: tokens/s of the forward
// and of the backward pass, and the GFLOP/s of the products the definition needs beside the chunk
// size: 4 D E a token and head forward, three times that backward (the work inside chunks not
// counted).
//
//   cpu_linear_attention [max_tokens = 65536] [max_threads = 2]
//
// The peer is cpu_linear_attention_torch.py.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "attention/lightning_attention.h"
#include "runtime/base/check.h"
#include "runtime/base/philox.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/arena.h"

namespace evenkeel {
namespace {

// Median seconds of a call, over at least five calls and a quarter of a second.
double MedianSeconds(const std::function<void()>& call) {
  call();
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < 5 || (total < 0.25 && seconds.size() < 1000)) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    seconds.push_back(elapsed.count());
    total += elapsed.count();
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size() / 2),
                   seconds.end());
  return seconds[seconds.size() / 2];
}

void Measure(int64_t heads, int64_t size, int64_t tokens, int threads) {
  MemoryTracker tracker;
  auto arena = Arena::Create(int64_t{1} << 34, tracker);
  EK_CHECK(arena.ok());
  ThreadPool pool(threads);
  const OpContext context = {pool, *arena, DType::kF32};
  const Shape shape = {tokens, heads, size};
  const std::vector<int64_t> cu_seqlens = {0, tokens};
  const std::vector<double> slopes = TransNormerSlopes(heads, 4, 24);
  const auto make = [&](uint64_t stream) {
    const TensorView x = arena->Allocate(DType::kF32, shape, MemoryPurpose::kActivations);
    const Philox random(1, stream);
    for (int64_t i = 0; i < x.num_elements(); ++i) {
      x.as<float>()[i] = 0.1f * static_cast<float>(random.Uniform(static_cast<uint64_t>(i)) - 0.5);
    }
    return x;
  };
  const TensorView q = make(1), k = make(2), v = make(3), dout = make(4);
  const TensorView out = make(5), dq = make(6), dk = make(7), dv = make(8);
  const double forward = MedianSeconds(
      [&] { LightningAttentionForward(context, cu_seqlens, slopes, q, k, v, {}, out, {}); });
  const double backward = MedianSeconds([&] {
    LightningAttentionBackward(context, cu_seqlens, slopes, q, k, v, {}, dout, {}, dq, dk, dv, {});
  });
  const auto n = static_cast<double>(tokens);
  const double flops = 4.0 * n * static_cast<double>(heads * size * size);
  std::printf("%5ld %5ld %8ld %8d %14.0f %9.1f %14.0f %9.1f\n", heads, size, tokens, threads,
              n / forward, flops / forward * 1e-9, n / backward, 3 * flops / backward * 1e-9);
  std::fflush(stdout);
}

// Decoding: one token of each of `documents` sequences, states updated in place.
void MeasureDecode(int64_t documents, int64_t heads, int64_t size, int threads) {
  MemoryTracker tracker;
  auto arena = Arena::Create(int64_t{1} << 34, tracker);
  EK_CHECK(arena.ok());
  ThreadPool pool(threads);
  const OpContext context = {pool, *arena, DType::kF32};
  const auto make = [&](Shape shape) {
    return arena->AllocateZero(DType::kF32, shape, MemoryPurpose::kActivations);
  };
  const Shape rows = {documents, heads, size};
  const TensorView q = make(rows), k = make(rows), v = make(rows), out = make(rows);
  const TensorView state = make({documents, heads, size, size});
  std::vector<int64_t> cu_seqlens;
  for (int64_t b = 0; b <= documents; ++b) cu_seqlens.push_back(b);
  const std::vector<double> slopes = TransNormerSlopes(heads, 4, 24);
  const double seconds = MedianSeconds(
      [&] { LightningAttentionForward(context, cu_seqlens, slopes, q, k, v, state, out, state); });
  const auto bytes = static_cast<double>(2 * state.num_elements() * SizeOf(DType::kF32));
  std::printf("%5ld %5ld %8ld %8d %14.0f %9.1f\n", heads, size, documents, threads,
              static_cast<double>(documents) / seconds, bytes / seconds * 1e-9);
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  const int64_t max_tokens = argc > 1 ? std::atoll(argv[1]) : 65536;
  const int max_threads = argc > 2 ? std::atoi(argv[2]) : 2;
  struct Heads {
    int64_t count, size;
  };
  const Heads shapes[] = {{8, 32}, {8, 64}, {4, 128}};
  std::printf("%5s %5s %8s %8s %14s %9s %14s %9s\n", "heads", "size", "tokens", "threads",
              "fwd tokens/s", "GFLOP/s", "bwd tokens/s", "GFLOP/s");
  for (const Heads& heads : shapes) {
    for (int threads = 1; threads <= max_threads; ++threads) {
      for (int64_t tokens = 512; tokens <= max_tokens; tokens *= 2) {
        evenkeel::Measure(heads.count, heads.size, tokens, threads);
      }
    }
  }
  std::printf("\ndecoding\n%5s %5s %8s %8s %14s %9s\n", "heads", "size", "seqs", "threads",
              "tokens/s", "GB/s");
  for (const Heads& heads : shapes) {
    for (int64_t documents : {1, 16, 256}) {
      evenkeel::MeasureDecode(documents, heads.count, heads.size, 1);
    }
  }
  return 0;
}
