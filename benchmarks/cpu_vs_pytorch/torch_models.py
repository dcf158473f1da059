"""The benchmark's two models in plain PyTorch, written for speed: fused projections, F.rms_norm,
F.scaled_dot_product_attention, and linear attention as batched products over all chunks at once.

Shapes: B sequences of S tokens, H heads, N chunks of C tokens, D head size, E value size.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def normal(*shape):
    return nn.Parameter(torch.randn(shape) * 0.02)


class SoftmaxAttention(nn.Module):
    """Llama's attention with rotary embeddings; queries, keys and values from one product."""

    def __init__(self, config, sequence):
        super().__init__()
        self.heads, self.size = config["num_heads"], config["hidden_size"] // config["num_heads"]
        width = config["hidden_size"]
        self.in_proj, self.out_proj = normal(3 * width, width), normal(width, width)
        rates = 10000.0 ** (-torch.arange(0, self.size, 2, dtype=torch.float64) / self.size)
        angles = torch.arange(sequence, dtype=torch.float64)[:, None] * rates
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=1).float())
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=1).float())

    def rotate(self, x):
        return x * self.cos + x.roll(self.size // 2, dims=-1) * self.sin

    def forward(self, x):
        batch, sequence, width = x.shape
        qkv = F.linear(x, self.in_proj).view(batch, sequence, 3, self.heads, self.size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return F.linear(out.transpose(1, 2).reshape(batch, sequence, width), self.out_proj)


def slopes_of(heads):
    """The decays of TransNormerLLM's heads: geometric, and for other numbers than powers of two
    those of the power below, then every other one of the power above."""
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    if power < heads:
        slopes += [2.0 ** (-4.0 * (h + 1) / power) for h in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float64)


class LinearAttention(nn.Module):
    """TransNormerLLM's gated linear attention with a decay a head. Inside chunks by masked scores;
    the states between chunks by one product with the matrix of decays from chunk to chunk."""

    def __init__(self, config, layer, sequence, chunk):
        super().__init__()
        self.heads, self.size = config["num_heads"], config["hidden_size"] // config["num_heads"]
        self.chunk = chunk
        width, last = config["hidden_size"], max(config["num_layers"] - 1, 1)
        self.in_proj, self.out_proj = normal(4 * width, width), normal(width, width)
        self.theta = None
        if layer == 0:
            exponents = torch.arange(width, dtype=torch.float64) * (-2.0 / width)
            self.theta = nn.Parameter((10000.0 ** exponents).float().view(self.heads, 1, self.size))
            self.register_buffer("positions", torch.arange(sequence, dtype=torch.float32))
        slopes = slopes_of(self.heads)[:, None] * (1 - layer / last + 1e-5)
        steps = torch.arange(chunk, dtype=torch.float64)
        chunks = torch.arange(sequence // chunk, dtype=torch.float64)
        between = chunks[:, None] - chunks[None, :] - 1
        self.keep("mask", self.powers(slopes[:, :, None], steps[:, None] - steps[None, :])[:, None])
        self.keep("query_decay", self.powers(slopes, steps + 1)[:, None, :, None])
        self.keep("key_decay", self.powers(slopes, chunk - 1 - steps)[:, None, :, None])
        self.keep("between", self.powers(slopes[:, :, None] * chunk, between))

    @staticmethod
    def powers(slopes, distance):
        return torch.where(distance >= 0, torch.exp(-slopes * distance.clamp(min=0)), 0.0)

    def keep(self, name, value):
        # No denormal numbers: they are slow on some processors and add nothing.
        self.register_buffer(name, torch.where(value < 1e-30, 0.0, value).float())

    def widen(self, x):
        angles = self.theta * self.positions[:, None]
        return torch.cat([x * angles.cos(), x * angles.sin()], dim=-1)

    def forward(self, x):
        batch, sequence, width = x.shape
        projected = F.linear(x, self.in_proj)
        qkv, gate = projected.split([3 * width, width], dim=-1)
        q, k, v = qkv.view(batch, sequence, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = F.silu(q), F.silu(k)
        if self.theta is not None:
            q, k = self.widen(q), self.widen(k)
        q, k, v = (t.unflatten(2, (-1, self.chunk)) for t in (q, k, v))  # [B, H, N, C, D]
        out = torch.matmul(torch.matmul(q, k.transpose(-1, -2)) * self.mask, v)
        added = torch.matmul((k * self.key_decay).transpose(-1, -2), v)  # [B, H, N, D, E]
        states = torch.matmul(self.between, added.flatten(3)).view_as(added)
        out = out + torch.matmul(q * self.query_decay, states)
        out = out.flatten(2, 3).transpose(1, 2).reshape(batch, sequence, width)
        return F.linear(gate * F.rms_norm(out, (width,), None, 1e-6), self.out_proj)


class Block(nn.Module):
    def __init__(self, config, layer, sequence, chunk):
        super().__init__()
        width, ffn = config["hidden_size"], config["intermediate_size"]
        self.softmax = config["kind"] == "softmax"
        if self.softmax:
            self.attention = SoftmaxAttention(config, sequence)
            self.attention_norm = nn.Parameter(torch.ones(width))
            self.mlp_norm = nn.Parameter(torch.ones(width))
        else:
            self.attention = LinearAttention(config, layer, sequence, chunk)
            self.attention_norm = self.mlp_norm = None
        self.mlp_pair, self.mlp_down = normal(2 * ffn, width), normal(width, ffn)

    def forward(self, x):
        shape = (x.shape[-1],)
        x = x + self.attention(F.rms_norm(x, shape, self.attention_norm, 1e-6))
        left, right = F.linear(F.rms_norm(x, shape, self.mlp_norm, 1e-6), self.mlp_pair).chunk(2, -1)
        hidden = (F.silu(left) if self.softmax else left) * right
        return x + F.linear(hidden, self.mlp_down)


class LanguageModel(nn.Module):
    def __init__(self, config, sequence, chunk, recompute):
        super().__init__()
        self.config, self.recompute = config, recompute
        width = config["hidden_size"]
        self.embedding = normal(config["vocab_size"], width)
        self.blocks = nn.ModuleList(
            Block(config, layer, sequence, chunk) for layer in range(config["num_layers"]))
        self.final_norm = nn.Parameter(torch.ones(width)) if config["kind"] == "softmax" else None

    def forward(self, tokens, targets):
        """Mean loss over the targets >= 0. tokens, targets [B, S]."""
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        logits = F.linear(F.rms_norm(x, (x.shape[-1],), self.final_norm, 1e-6), self.embedding)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def named_weights(self):
        """(Hugging Face or OpenNLPLab name, tensor) of every weight, fused ones as their parts."""
        width, ffn = self.config["hidden_size"], self.config["intermediate_size"]
        yield "model.embed_tokens.weight", self.embedding
        for i, block in enumerate(self.blocks):
            prefix, attention = f"model.layers.{i}.", block.attention
            if block.softmax:
                yield prefix + "input_layernorm.weight", block.attention_norm
                for name, part in zip("qkv", attention.in_proj.split(width)):
                    yield f"{prefix}self_attn.{name}_proj.weight", part
                yield prefix + "self_attn.o_proj.weight", attention.out_proj
                yield prefix + "post_attention_layernorm.weight", block.mlp_norm
                names = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
            else:
                yield prefix + "token_mixer.qkvu_proj.weight", attention.in_proj
                if attention.theta is not None:
                    yield prefix + "token_mixer.lrpe.theta", attention.theta
                yield prefix + "token_mixer.out_proj.weight", attention.out_proj
                names = ("channel_mixer.l1", "channel_mixer.l2", "channel_mixer.l3")
            for name, part in zip(names, (*block.mlp_pair.split(ffn), block.mlp_down)):
                yield f"{prefix}{name}.weight", part
        if self.final_norm is not None:
            yield "model.norm.weight", self.final_norm
