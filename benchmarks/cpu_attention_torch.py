#!/usr/bin/env python3
"""The peer of cpu_attention: PyTorch's scaled_dot_product_attention on the CPU, float32, causal.

  cpu_attention_torch.py [seconds per case = 1] [threads = 1]

Prints GFLOP/s per thread, counting 4 D per (query, key) pair forward and 10 D backward; the best of
several runs.
"""
import sys
import time

import torch

HEADS = 4


def best_seconds(seconds, query, key, value, dout):
    """Returns the shortest forward and backward times in `seconds` of calls, at least 3."""
    best = [float("inf")] * 2
    begin = time.perf_counter()
    runs = 0
    while runs < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        middle = time.perf_counter()
        out.backward(dout)
        best = [min(best[0], middle - start), min(best[1], time.perf_counter() - middle)]
        query.grad = key.grad = value.grad = None
        runs += 1
    return best


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    torch.set_num_threads(threads)
    print(f"PyTorch {torch.__version__}, {threads} threads")
    print(f"{'D':>8} {'length':>6} {'fwd GF/s':>10} {'bwd GF/s':>10} {'fwd ms':>12} {'bwd ms':>12}")
    for head_size in (32, 64, 128):
        for length in (512, 2048, 16384):
            shape = (1, HEADS, length, head_size)
            operands = [torch.randn(shape, requires_grad=True) for _ in range(3)]
            forward, backward = best_seconds(seconds, *operands, torch.randn(shape))
            unit = HEADS * length * (length + 1) / 2 * head_size * 1e-9 / threads
            print(f"{head_size:8d} {length:6d} {4 * unit / forward:10.1f} "
                  f"{10 * unit / backward:10.1f} {forward * 1e3:12.3f} {backward * 1e3:12.3f}",
                  flush=True)


if __name__ == "__main__":
    main()
