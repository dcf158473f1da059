"""The peer of cpu_linear_attention: the same chunked linear attention in plain PyTorch matrix products,
for chunks of 64, 128 and 256 tokens. Prints the best of them for each shape and number of threads:
tokens/s of the forward and of the backward pass (its gradients written out, as fast as the forward).

    python3 cpu_linear_attention_torch.py [max_tokens] [max_threads]
"""
import statistics
import sys
import time

import torch


def median_seconds(call):
    call()
    times = []
    while len(times) < 5 or (sum(times) < 0.25 and len(times) < 1000):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Decays:
    def __init__(self, slopes, chunk):
        steps = torch.arange(chunk, dtype=torch.float64)
        distance = steps[:, None] - steps[None, :]
        slopes = slopes[:, None].double()
        self.mask = torch.where(distance >= 0, torch.exp(-slopes[:, :, None] * distance.clamp(min=0)),
                                torch.zeros(())).float()
        self.query = torch.exp(-slopes * (steps + 1)).float()[:, :, None]
        self.key = torch.exp(-slopes * (chunk - 1 - steps)).float()[:, :, None]
        self.block = torch.exp(-slopes * chunk).float()[:, :, None]


def causal_pass(q, k, v, decays, chunk):
    """q, k [T, H, D], v [T, H, E] to out [T, H, E]; T a multiple of chunk."""
    out = torch.empty_like(v)
    state = torch.zeros(q.shape[1], q.shape[2], v.shape[2])
    for begin in range(0, q.shape[0], chunk):
        q_c, k_c, v_c = (x[begin:begin + chunk].transpose(0, 1).contiguous() for x in (q, k, v))
        inside = torch.bmm(torch.bmm(q_c, k_c.transpose(1, 2)).mul_(decays.mask), v_c)
        inside.add_(torch.bmm(q_c, state).mul_(decays.query))
        out[begin:begin + chunk] = inside.transpose(0, 1)
        state = torch.baddbmm(state.mul_(decays.block), k_c.mul_(decays.key).transpose(1, 2), v_c)
    return out


def backward_pass(q, k, v, dout, decays, chunk):
    """Gradients of all three: dq forward with the state built again, dk and dv from the end, sharing
    the scores and the state's gradient."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    state = torch.zeros(q.shape[1], q.shape[2], v.shape[2])
    for begin in range(0, q.shape[0], chunk):
        k_c, v_c, do_c = (x[begin:begin + chunk].transpose(0, 1).contiguous() for x in (k, v, dout))
        dscores = torch.bmm(do_c, v_c.transpose(1, 2)).mul_(decays.mask)
        inside = torch.bmm(dscores, k_c)
        inside.add_(torch.bmm(do_c, state.transpose(1, 2)).mul_(decays.query))
        dq[begin:begin + chunk] = inside.transpose(0, 1)
        state = torch.baddbmm(state.mul_(decays.block), k_c.mul_(decays.key).transpose(1, 2), v_c)
    dstate = torch.zeros_like(state)
    for begin in range(q.shape[0] - chunk, -1, -chunk):
        q_c, k_c, v_c, do_c = (x[begin:begin + chunk].transpose(0, 1).contiguous()
                               for x in (q, k, v, dout))
        dscores = torch.bmm(do_c, v_c.transpose(1, 2)).mul_(decays.mask)
        scores = torch.bmm(q_c, k_c.transpose(1, 2)).mul_(decays.mask)
        dk_c = torch.bmm(dscores.transpose(1, 2), q_c)
        dk_c.add_(torch.bmm(v_c, dstate.transpose(1, 2)).mul_(decays.key))
        dv_c = torch.bmm(scores.transpose(1, 2), do_c)
        dv_c.add_(torch.bmm(k_c, dstate).mul_(decays.key))
        dk[begin:begin + chunk] = dk_c.transpose(0, 1)
        dv[begin:begin + chunk] = dv_c.transpose(0, 1)
        dstate = torch.baddbmm(dstate.mul_(decays.block), q_c.mul_(decays.query).transpose(1, 2), do_c)
    return dq, dk, dv


def main():
    max_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 65536
    max_threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    torch.set_grad_enabled(False)
    print("heads  size   tokens  threads   fwd tokens/s  chunk   bwd tokens/s  chunk")
    for heads, size in ((8, 32), (8, 64), (4, 128)):
        slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) * (1 - 4 / 23 + 1e-5)
                               for h in range(heads)])
        for threads in range(1, max_threads + 1):
            torch.set_num_threads(threads)
            tokens = 512
            while tokens <= max_tokens:
                q, k, v, dout = (torch.rand(tokens, heads, size).sub_(0.5).mul_(0.1) for _ in range(4))
                best = {"fwd": (float("inf"), 0), "bwd": (float("inf"), 0)}
                for chunk in (64, 128, 256):
                    decays = Decays(slopes, chunk)
                    forward = median_seconds(lambda: causal_pass(q, k, v, decays, chunk))
                    backward = median_seconds(lambda: backward_pass(q, k, v, dout, decays, chunk))
                    best["fwd"] = min(best["fwd"], (forward, chunk))
                    best["bwd"] = min(best["bwd"], (backward, chunk))
                print(f"{heads:5} {size:5} {tokens:8} {threads:8} {tokens / best['fwd'][0]:14.0f} "
                      f"{best['fwd'][1]:6} {tokens / best['bwd'][0]:14.0f} {best['bwd'][1]:6}", flush=True)
                tokens *= 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
