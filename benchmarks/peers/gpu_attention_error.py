"""Relative errors (2-norm) against float64 of our kernels and of PyTorch's bf16 operation on the same
inputs, from the files that `gpu_attention dump FOLDER` wrote. Exits 1 if one of ours is above twice
PyTorch's.

    python3 gpu_attention_error.py FOLDER
"""
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def load(base, name, rows, heads, dim):
    data = torch.frombuffer(bytearray(pathlib.Path(base + name).read_bytes()), dtype=torch.bfloat16)
    return data.view(rows, heads, dim).transpose(0, 1).unsqueeze(0).cuda()


def exact(q, k, v, grad):
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) / q.shape[3] ** 0.5
    mask = torch.ones(scores.shape[2:], dtype=torch.bool, device="cuda").tril()
    out = scores.masked_fill(~mask, float("-inf")).softmax(3) @ v.repeat_interleave(group, 1)
    out.backward(grad.double())
    return out.detach(), q.grad, k.grad, v.grad


def main(folder):
    worst = 0.0
    print(f"# {'case':<16} {'tensor':<6} {'ours':>10} {'PyTorch':>10} {'ratio':>6}")
    for path in sorted(pathlib.Path(folder).glob("softmax_*_q")):
        base = str(path)[:-1]
        rows, heads, kv_heads, dim = map(int, path.name.split("_")[1:5])
        q, k, v, grad = (load(base, name, rows, n, dim) for name, n in
                         (("q", heads), ("k", kv_heads), ("v", kv_heads), ("dout", heads)))
        ours = [load(base, name, rows, n, dim) for name, n in
                (("out", heads), ("dq", heads), ("dk", kv_heads), ("dv", kv_heads))]
        want = exact(q, k, v, grad)
        q, k, v = (x.requires_grad_() for x in (q, k, v))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            out.backward(grad)
        for name, mine, theirs, w in zip(("out", "dq", "dk", "dv"), ours,
                                         (out.detach(), q.grad, k.grad, v.grad), want):
            a, b = (((x.double() - w).norm() / w.norm()).item() for x in (mine, theirs))
            worst = max(worst, a / b if a == a else float("inf"))
            print(f"{rows}x{heads}/{kv_heads}x{dim:<8} {name:<6} {a:>10.2e} {b:>10.2e} {a / b:>6.2f}")
    return 0 if worst <= 2.0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
