#!/usr/bin/env python3
"""What attention in 8-bit floating point would cost in accuracy, emulated in numpy.

One head of causal attention, forward and backward, with every operand of its products rounded to bf16, or to
FP8 (e4m3) with a scale a tensor or a scale a block of 64 rows; sums and statistics are not rounded, which tensor
cores do better or worse. Relative errors against float64, |x - want| / |want| over all elements. Two kinds of
inputs: normal numbers, and normal numbers of which one in a thousand is ten times as wide (the outliers of
Shah et al., FlashAttention-3, 2024); with these also after a random rotation of q and k, as they propose.
"""

import argparse

import numpy as np

E4M3_MAX = 448.0


def round_to(x, mantissa_bits, least_exponent):
    """Nearest number with so many bits after the first, none finer than that of least_exponent."""
    _, exponent = np.frexp(x)
    step = np.exp2(np.maximum(exponent - 1, least_exponent) - mantissa_bits)
    return np.round(x / step) * step


def bf16(x):
    return round_to(x, 7, -126)


def e4m3(x):
    return round_to(np.clip(x, -E4M3_MAX, E4M3_MAX), 3, -6)


def fp8_tensor(x):
    scale = E4M3_MAX / max(np.abs(x).max(), 1e-30)
    return e4m3(x * scale) / scale


def fp8_block(x, rows=64):
    return np.concatenate([fp8_tensor(x[i:i + rows]) for i in range(0, len(x), rows)])


def attention(q, k, v, dout, operand):
    """(out, dq, dk, dv) of one head; `operand` rounds what enters a product."""
    n, d = q.shape
    scale = 1 / np.sqrt(d)
    hidden = np.triu(np.ones((n, n), dtype=bool), 1)
    q_in, k_in, v_in, dout_in = operand(q), operand(k), operand(v), operand(dout)
    scores = np.where(hidden, -np.inf, q_in @ k_in.T * scale)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    sums = weights.sum(axis=1, keepdims=True)
    out = operand(weights) @ v_in / sums
    p = weights / sums
    delta = (dout * out).sum(axis=1, keepdims=True)
    ds = p * (dout_in @ v_in.T - delta)
    p_in, ds_in = operand(p), operand(ds)
    return out, ds_in @ k_in * scale, ds_in.T @ q_in * scale, p_in.T @ dout_in


def normal(rng, n, d):
    return rng.standard_normal((n, d))


def with_outliers(rng, n, d):
    return rng.standard_normal((n, d)) + 10 * rng.standard_normal((n, d)) * (rng.random((n, d)) < 1e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    n, d = options.tokens, options.head_size
    rng = np.random.default_rng(options.seed)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    print(f"# relative errors of causal attention, {n} tokens, head size {d}")
    print(f"# {'inputs':<24} {'operands':<18} {'out':>9} {'dq':>9} {'dk':>9} {'dv':>9}")
    kinds = (("normal", normal, None), ("outliers", with_outliers, None), ("outliers, rotated", with_outliers, rotation))
    for inputs, draw, turn in kinds:
        q, k, v = (draw(rng, n, d) for _ in range(3))
        dout = normal(rng, n, d)
        want = attention(q, k, v, dout, lambda x: x)
        for name, operand in (("bf16", bf16), ("FP8, a tensor", fp8_tensor), ("FP8, a block", fp8_block)):
            if turn is None:
                got = attention(q, k, v, dout, operand)
            else:  # scores stay what they are; the gradients are turned back
                got = attention(q @ turn, k @ turn, v, dout, operand)
                got = (got[0], got[1] @ turn.T, got[2] @ turn.T, got[3])
            errors = [np.linalg.norm(g - w) / np.linalg.norm(w) for g, w in zip(got, want)]
            print(f"  {inputs:<24} {name:<18}" + "".join(f" {e:9.2e}" for e in errors))


if __name__ == "__main__":
    main()
