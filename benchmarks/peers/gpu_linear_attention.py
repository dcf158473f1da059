"""flash-linear-attention's kernel for linear attention with a fixed decay a head, in the cases and
columns of `gpu_attention lightning`. Needs the package flash-linear-attention.

    python3 gpu_linear_attention.py
"""
import torch
from triton.testing import do_bench


def main(heads=16, dim=128):
    from fla.ops.simple_gla import chunk_simple_gla
    slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)], device="cuda")
    print("# peer   case             heads  dim     fwd ms    Mtokens/s     bwd ms    Mtokens/s")
    for length, count in [(2048, 16), (8192, 4), (32768, 1), (131072, 1)]:
        q, k, v = ((torch.randn(count, length, heads, dim, device="cuda", dtype=torch.bfloat16) * 0.1)
                   .requires_grad_() for _ in range(3))
        grad = torch.randn_like(q)
        run = lambda: chunk_simple_gla(q, k, v, g_gamma=-slopes, scale=1.0)[0]
        with torch.no_grad():
            forward = do_bench(run, warmup=20, rep=120, return_mode="median")
        out = run()
        backward = do_bench(lambda: out.backward(grad, retain_graph=True), warmup=20, rep=120,
                            return_mode="median", grad_to_none=[q, k, v])
        tokens = length * count
        print(f"{'fla':<8} {f'{length} x {count}':<16} {heads:>5} {dim:>4} {forward:>10.3f} "
              f"{tokens / forward * 1e-3:>12.1f} {backward:>10.3f} {tokens / backward * 1e-3:>12.1f}", flush=True)
        del q, k, v, grad, out


if __name__ == "__main__":
    main()
