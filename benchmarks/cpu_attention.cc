// How fast is causal softmax attention on the CPU? Prints GFLOP/s per thread in float32, counting
// 4 D per (query, key) pair forward and 10 D backward; the best of several runs.
//   cpu_attention [seconds per case = 1] [threads = 1,2] [decode]
// Its peer is cpu_attention_torch.py.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "attention/softmax_attention.h"
#include "runtime/base/philox.h"
#include "runtime/tensor/tensor.h"

namespace evenkeel {
namespace {

struct Case {
  int64_t head_size;
  int64_t length;
  int64_t num_heads;
  int64_t num_kv_heads;
};

Tensor RandomTensor(Shape shape, uint64_t stream, MemoryTracker& tracker) {
  Tensor tensor = Tensor::Create(DType::kF32, shape, MemoryPurpose::kActivations, tracker).value();
  const Philox random(1, stream);
  float* data = tensor.view().as<float>();
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    data[i] = static_cast<float>(random.Normal(static_cast<uint64_t>(i)));
  }
  return tensor;
}

// Returns the shortest time of a call in `seconds` of calls, at least 3.
template <typename Body>
double BestSeconds(double seconds, const Body& body) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  const auto begin = Clock::now();
  double best = 1e30;
  for (int run = 0; run < 3 || since(begin) < seconds; ++run) {
    const auto start = Clock::now();
    body();
    best = std::min(best, since(start));
  }
  return best;
}

void RunCase(const Case& c, int num_threads, double seconds) {
  MemoryTracker tracker;
  ThreadPool pool(num_threads);
  Arena arena = Arena::Create(int64_t{1} << 32, tracker).value();
  const OpContext context{pool, arena};
  const Shape q_shape{c.length, c.num_heads, c.head_size};
  const Shape kv_shape{c.length, c.num_kv_heads, c.head_size};
  Tensor q = RandomTensor(q_shape, 0, tracker), k = RandomTensor(kv_shape, 1, tracker);
  Tensor v = RandomTensor(kv_shape, 2, tracker), dout = RandomTensor(q_shape, 3, tracker);
  Tensor out = RandomTensor(q_shape, 4, tracker), dq = RandomTensor(q_shape, 5, tracker);
  Tensor dk = RandomTensor(kv_shape, 6, tracker), dv = RandomTensor(kv_shape, 7, tracker);
  Tensor lse = RandomTensor(Shape{c.length, c.num_heads}, 8, tracker);
  const std::vector<AttentionTask> tasks = {{0, c.length, 0, c.length}};
  const double scale = 1 / std::sqrt(static_cast<double>(c.head_size));
  const double pairs = static_cast<double>(NumPairs(tasks[0]) * c.num_heads);
  const double unit = pairs * static_cast<double>(c.head_size) * 1e-9 / num_threads;

  const double forward = BestSeconds(seconds, [&] {
    SoftmaxAttentionForward(context, tasks, scale, q.view(), k.view(), v.view(), out.view(),
                            lse.view());
  });
  const double backward = BestSeconds(seconds, [&] {
    SoftmaxAttentionBackward(context, tasks, scale, q.view(), k.view(), v.view(), out.view(),
                             lse.view(), dout.view(), dq.view(), dk.view(), dv.view());
  });
  std::printf("%8ld %6ld %6ld/%-2ld %8d %10.1f %10.1f %12.3f %12.3f\n",
              static_cast<long>(c.head_size), static_cast<long>(c.length),
              static_cast<long>(c.num_heads), static_cast<long>(c.num_kv_heads), num_threads,
              4 * unit / forward, 10 * unit / backward, forward * 1e3, backward * 1e3);
  std::fflush(stdout);
}

// One query per head against `length` keys: bytes of keys and values read per second.
void RunDecode(const Case& c, int num_threads, double seconds) {
  MemoryTracker tracker;
  ThreadPool pool(num_threads);
  Arena arena = Arena::Create(int64_t{1} << 30, tracker).value();
  const OpContext context{pool, arena};
  const Shape q_shape{1, c.num_heads, c.head_size};
  const Shape kv_shape{c.length, c.num_kv_heads, c.head_size};
  Tensor q = RandomTensor(q_shape, 0, tracker), k = RandomTensor(kv_shape, 1, tracker);
  Tensor v = RandomTensor(kv_shape, 2, tracker), out = RandomTensor(q_shape, 3, tracker);
  Tensor lse = RandomTensor(Shape{1, c.num_heads}, 4, tracker);
  const std::vector<AttentionTask> tasks = {{0, 1, 0, c.length}};
  const double best = BestSeconds(seconds, [&] {
    SoftmaxAttentionForward(context, tasks, 0.1, q.view(), k.view(), v.view(), out.view(),
                            lse.view());
  });
  const double bytes = static_cast<double>(k.num_bytes() + v.num_bytes());
  std::printf("decode D %ld keys %ld heads %ld/%ld threads %d: %.1f GB/s\n",
              static_cast<long>(c.head_size), static_cast<long>(c.length),
              static_cast<long>(c.num_heads), static_cast<long>(c.num_kv_heads), num_threads,
              bytes * 1e-9 / best);
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 1;
  const std::string threads = argc > 2 ? argv[2] : "1,2";
  std::printf("%8s %6s %9s %8s %10s %10s %12s %12s\n", "D", "length", "heads", "threads",
              "fwd GF/s", "bwd GF/s", "fwd ms", "bwd ms");
  for (int num_threads : {1, 2}) {
    if (threads.find(std::to_string(num_threads)) == std::string::npos) continue;
    if (argc > 3) {
      evenkeel::RunDecode({128, 65536, 8, 8}, num_threads, seconds);
      evenkeel::RunDecode({128, 65536, 8, 2}, num_threads, seconds);
      evenkeel::RunDecode({64, 65536, 1, 1}, num_threads, seconds);
      continue;
    }
    for (int64_t head_size : {32, 64, 128}) {
      for (int64_t length : {512, 2048, 16384}) {
        evenkeel::RunCase({head_size, length, 4, 2}, num_threads, seconds);
      }
    }
  }
  return 0;
}
