"""The softmax attention kernels a PyTorch user would pick, in the cases and columns of
`gpu_attention softmax`, `sustained` (cuDNN alone) and `tasks`: cuDNN and FlashAttention-2, medians.

    python3 gpu_softmax_attention.py [softmax|sustained|tasks]
"""
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash2": SDPBackend.FLASH_ATTENTION}
ROW = "{:<8} {:<16} {:>5} {:>5} {:>4} {:>10.3f} {:>8.1f} {:>10.3f} {:>8.1f}"


def median_ms(run, **options):
    return do_bench(run, warmup=20, rep=120, return_mode="median", **options)


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def whole_documents(heads=32, kv_heads=8, tokens=32768):
    for dim in (128, 64, 256):
        for length in (2048, 8192, 32768, 131072):
            if dim != 128 and length in (2048, 131072):
                continue
            count = max(1, tokens // length)
            q = random(count, heads, length, dim).requires_grad_()
            k, v = (random(count, kv_heads, length, dim).requires_grad_() for _ in range(2))
            grad = torch.randn_like(q)
            flops = 4 * count * heads * dim * length * (length + 1) / 2
            for name, backend in PEERS.items():
                try:
                    with sdpa_kernel(backend):
                        run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                        with torch.no_grad():
                            forward = median_ms(run)
                        out = run()
                        backward = median_ms(lambda: out.backward(grad, retain_graph=True),
                                             grad_to_none=[q, k, v])
                        del out
                    print(ROW.format(name, f"{length} x {count}", heads, kv_heads, dim, forward,
                                     flops / forward * 1e-9, backward, 2.5 * flops / backward * 1e-9),
                          flush=True)
                except RuntimeError as error:
                    print(name, length, dim, str(error)[:100], flush=True)
            del q, k, v, grad


def gpu_ms(run, launches=1):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(launches):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / launches


def rested_and_sustained(run):
    """As MeasureRestedAndSustained of benchmarks/gpu_measure.h."""
    gpu_ms(run)
    times = []
    for _ in range(5):
        time.sleep(0.06)
        times.append(gpu_ms(run))
    rested = sorted(times)[2]
    launches = max(1, int(500 / rested))
    gpu_ms(run, launches)
    return rested, gpu_ms(run, launches)


def sustained():
    print("# TFLOP/s of a launch after a rest, and of launches one after the other")
    print("# case           heads    kv  dim     fwd_rested  fwd_sustained     bwd_rested  bwd_sustained")
    for length, count, heads, kv_heads, dim in [
            (8192, 4, 32, 8, 128), (32768, 1, 32, 8, 128), (8192, 2, 16, 16, 128), (32768, 1, 16, 16, 128),
            (8192, 4, 32, 8, 64), (32768, 1, 32, 8, 64), (8192, 4, 32, 8, 256), (32768, 1, 32, 8, 256)]:
        q = random(count, heads, length, dim).requires_grad_()
        k, v = (random(count, kv_heads, length, dim).requires_grad_() for _ in range(2))
        grad = torch.randn_like(q)
        flops = 4 * count * heads * dim * length * (length + 1) / 2
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            with torch.no_grad():
                forward = rested_and_sustained(run)
            out = run()
            backward = rested_and_sustained(
                lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
        print("{:<16} {:>5} {:>5} {:>4} {:>14.1f} {:>14.1f} {:>14.1f} {:>14.1f}".format(
            f"{length} x {count}", heads, kv_heads, dim, *(flops / ms * 1e-9 for ms in forward),
            *(2.5 * flops / ms * 1e-9 for ms in backward)), flush=True)
        del q, k, v, grad, out


def fused_tasks(heads=32, dim=128):
    """Bottom-right causal shards through PyTorch's variable-length FlashAttention-2 (forward)."""
    from torch.nn.attention.varlen import varlen_attn
    for shard, context, count in [(128, 8192, 128), (128, 65536, 32), (512, 65536, 16), (1024, 131072, 8),
                                  (4096, 131072, 4)]:
        starts = lambda n: torch.arange(count + 1, dtype=torch.int32, device="cuda") * n
        q = random(count * shard, heads, dim)
        k, v = (random(count * context, heads, dim) for _ in range(2))
        pairs = count * (shard * (context - shard) + shard * (shard + 1) / 2)
        run = lambda: varlen_attn(q, k, v, starts(shard), starts(context), shard, context, window_size=(-1, 0))
        ms = median_ms(run)
        print(ROW.format("flash2", f"{shard} on {context}", heads, heads, dim, ms,
                         4 * heads * dim * pairs / ms * 1e-9, 0.0, 0.0), flush=True)
        del q, k, v


if __name__ == "__main__":
    mode = sys.argv[1] if len(sys.argv) > 1 else "softmax"
    if mode == "sustained":
        sustained()
    else:
        print("# peer   case             heads    kv  dim     fwd ms  TFLOP/s     bwd ms  TFLOP/s")
        fused_tasks() if mode == "tasks" else whole_documents()
