"""Training steps of the models of `benchmarks/gpu.sh steps` in PyTorch, on one GPU: float32 weights, bf16 activations
by autocast, torch.compile, fused AdamW. Softmax attention is cuDNN's; that of tnl-1b is
flash-linear-attention's kernel, which must be installed for it. One JSON object, with
the keys of our rows (gpu_tables.py).

    python3 gpu_train_step.py PRESET SEQUENCE BATCH [none|layer] [STEPS] [clip]

What is left out favours the peer: no LRPE in tnl-1b's first layer; no clipping and no norm of the
gradient, unless `clip` asks for them. The residual stream is bf16 as ours is, which is faster than
autocast's own choice of float32.
"""
import json
import sys
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

WARM_UP = 3


class Preset(NamedTuple):
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int
    linear: bool = False

    @property
    def head_size(self):
        return self.width // self.heads


PRESETS = {
    "160m": Preset(12, 768, 12, 12, 2048, 32000),
    "1b": Preset(16, 2048, 16, 16, 5632, 32000),
    "3b": Preset(28, 3072, 24, 8, 8192, 32000),
    "tnl-1b": Preset(16, 2048, 16, 16, 5632, 64000, linear=True),
}


def norm(x, gain=None):
    wide = x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    return (y if gain is None else y * gain).to(x.dtype)


def matrix(rows, columns):
    return nn.Linear(columns, rows, bias=False)


class SoftmaxBlock(nn.Module):
    def __init__(self, preset, layer):
        super().__init__()
        self.preset = preset
        self.attention_gain = nn.Parameter(torch.ones(preset.width))
        self.mlp_gain = nn.Parameter(torch.ones(preset.width))
        self.qkv = matrix((preset.heads + 2 * preset.kv_heads) * preset.head_size, preset.width)
        self.out = matrix(preset.width, preset.width)
        self.pair = matrix(2 * preset.feed_forward, preset.width)
        self.down = matrix(preset.width, preset.feed_forward)

    def attention(self, h, table):
        p = self.preset
        q, k, v = (self.qkv(h).unflatten(-1, (-1, p.head_size)).transpose(1, 2)
                   .split([p.heads, p.kv_heads, p.kv_heads], dim=1))
        cos, sin = table

        def rotate(x):
            first, second = x.chunk(2, dim=-1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True,
                                           enable_gqa=p.kv_heads < p.heads)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x, table):
        x = x + self.attention(norm(x, self.attention_gain), table)
        gate, up = self.pair(norm(x, self.mlp_gain)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class LinearBlock(nn.Module):
    def __init__(self, preset, layer):
        super().__init__()
        self.preset = preset
        slopes = 2.0 ** (torch.arange(1, preset.heads + 1) * (-8.0 / preset.heads))
        fade = 1 - layer / (preset.layers - 1) + 1e-5
        self.register_buffer("decay", -slopes * fade)
        self.qkvu = matrix(4 * preset.width, preset.width)
        self.out = matrix(preset.width, preset.width)
        self.pair = matrix(2 * preset.feed_forward, preset.width)
        self.down = matrix(preset.width, preset.feed_forward)

    def forward(self, x, table):
        from fla.ops.simple_gla import chunk_simple_gla
        q, k, v, gate = self.qkvu(norm(x)).chunk(4, dim=-1)
        q, k, v = (y.unflatten(-1, (self.preset.heads, -1)) for y in (F.silu(q), F.silu(k), v))
        y, _ = chunk_simple_gla(q, k, v, g_gamma=self.decay, scale=1.0)
        x = x + self.out(gate * norm(y.flatten(2)))
        first, second = self.pair(norm(x)).chunk(2, dim=-1)
        return x + self.down(first * second)


class LanguageModel(nn.Module):
    def __init__(self, preset, recompute):
        super().__init__()
        self.recompute = recompute
        self.embedding = nn.Embedding(preset.vocab, preset.width)
        kind = LinearBlock if preset.linear else SoftmaxBlock
        self.blocks = nn.ModuleList(kind(preset, layer) for layer in range(preset.layers))
        self.gain = nn.Parameter(torch.ones(preset.width))
        self.head = matrix(preset.vocab, preset.width)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens, targets, table):
        x = self.embedding(tokens).bfloat16()
        for block in self.blocks:
            x = checkpoint(block, x, table, use_reentrant=False) if self.recompute else block(x, table)
        logits = self.head(norm(x, self.gain))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def rotary_table(preset, sequence):
    half = preset.head_size // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(sequence, dtype=torch.float64)[:, None] * rates
    return tuple(f(angles).to("cuda", torch.bfloat16) for f in (torch.cos, torch.sin))


def main(name, sequence, batch, recompute="none", steps=10, clip=""):
    preset, sequence, batch, steps = PRESETS[name], int(sequence), int(batch), int(steps)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    with torch.device("cuda"):
        model = LanguageModel(preset, recompute == "layer")
        text = torch.randint(preset.vocab, (batch, sequence + 1))
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    table = rotary_table(preset, sequence)
    compiled = torch.compile(model, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                  fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            loss = compiled(tokens, targets, table)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        loss = step().item()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = sorted(seconds)[len(seconds) // 2]
    print(json.dumps({
        "peer": "torch.compile, " + ("fla" if preset.linear else "cuDNN") + (", clipping" if clip else ""),
        "preset": name, "seq": sequence, "batch": batch, "recompute": recompute,
        "loss": round(loss, 3), "tokens_per_s": round(sequence * batch / median),
        "step_ms": round(median * 1e3, 2),
        "peak_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "device_GiB": round(torch.cuda.max_memory_reserved() / 2**30, 1)}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in PRESETS:
        sys.exit(__doc__)
    main(*sys.argv[1:])
