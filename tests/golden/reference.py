"""The models' formulas in plain PyTorch, as they stand in the papers and in the released code.

One document at a time, one head at a time, every attention matrix written out with an explicit mask:
slow, and independent of packing, tasks, chunks and states. Weights are a dict under the names that
models/parameters.h uses. T tokens, C hidden size, H heads, G key/value heads, D head size.

Sources: Llama, Qwen2, Qwen3: their technical reports and Hugging Face's conventions (rotate-half RoPE).
TransNormerLLM: arXiv 2405.17381 and OpenNLPLab's released modelling code, which the released weights
follow. TransNormer v1: arXiv 2210.10340.
Where v1's released code leaves room, the choice here is that of models/block_spec.h:
  * SRMSNorm is x / sqrt(mean(x^2) + eps) everywhere (the released code: x / (||x|| / sqrt(d) + 1e-8));
  * the norm of the attention output covers all heads together and has no gain;
  * Urpe is one Householder reflection per layer, then the rotation of neighbouring dimensions
    (2 j, 2 j + 1) by theta_j p, theta shared by the heads;
  * DiagAttention counts positions from the start of its block, NormAttention from the start of the
    document;
  * q, k, v, output and feed-forward projections have biases; the feed-forward is SwiGLU.

Everything is computed in the dtype of the weights. Where that is narrower than float32, angles, decays
and the cross-entropy are still computed in float32 or better, as PyTorch's users do: bfloat16 cannot
count beyond 256. (benchmarks/peers/gpu_model_error.py)
"""

import math

import torch


def rms_norm(x, eps, gain=None):
    y = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if gain is None else y * gain


def silu(x):
    return x / (1 + torch.exp(-x))


def elu(x):
    # exp of the negative part alone: its gradient where x is large must not be infinity times zero.
    return torch.where(x > 0, x, torch.exp(torch.clamp(x, max=0)) - 1)


def causal(n):
    """[n, n]: does query i (row) see key j (column)?"""
    return torch.arange(n)[:, None] >= torch.arange(n)[None, :]


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


# Positions.


def positions_of(x):
    """[T, 1], in the dtype that angles are computed in."""
    return torch.arange(len(x), dtype=wide(x.dtype))[:, None]


def rope_frequencies(rope, head_size):
    """The head_size / 2 frequencies after scaling, and the factor of cos and sin."""
    theta, factor = rope["rope_theta"], rope["factor"]
    frequencies = [theta ** (-2 * j / head_size) for j in range(head_size // 2)]
    kind, original = rope["rope_type"], rope["original_max_position_embeddings"]
    if kind == "none":
        return frequencies, 1.0
    if kind == "llama3":
        # Llama 3.1: by wavelength against the original context.
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        scaled = []
        for f in frequencies:
            wavelength = 2 * math.pi / f
            if wavelength < original / high:
                scaled.append(f)
            elif wavelength > original / low:
                scaled.append(f / factor)
            else:
                smooth = (original / wavelength - low) / (high - low)
                scaled.append((1 - smooth) * f / factor + smooth * f)
        return scaled, 1.0
    assert kind == "yarn", kind
    # YaRN, arXiv 2309.00071: the dimension where a pair turns r times in the original context.
    def dimension(r):
        return head_size * math.log(original / (2 * math.pi * r)) / (2 * math.log(theta))
    low = max(math.floor(dimension(rope["beta_fast"])), 0)
    high = min(math.ceil(dimension(rope["beta_slow"])), head_size - 1)
    scaled = []
    for j, f in enumerate(frequencies):
        ramp = min(max((j - low) / (high - low), 0), 1)
        scaled.append(f * (1 - ramp) + f / factor * ramp)
    return scaled, rope["attention_factor"] or 0.1 * math.log(factor) + 1


def rope(x, frequencies, factor):
    """x [T, D], dimension j paired with j + D / 2."""
    angle = positions_of(x) * torch.tensor(frequencies, dtype=wide(x.dtype))
    cos, sin = (torch.cos(angle) * factor).to(x.dtype), (torch.sin(angle) * factor).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def lrpe(x, theta):
    """x [T, D], theta [D] -> [T, 2 D]."""
    angle = positions_of(x) * theta
    return torch.cat([x * torch.cos(angle).to(x.dtype), x * torch.sin(angle).to(x.dtype)], -1)


def urpe(x, theta, reflection):
    """x [T, D], theta [D / 2], reflection [D]: the whole map as one D x D matrix for each position."""
    size = x.shape[1]
    householder = torch.eye(size, dtype=x.dtype) - 2 * torch.outer(reflection, reflection)
    rows = []
    for position, row in enumerate(x):
        rotation = torch.zeros(size, size, dtype=x.dtype)
        angle = theta * position
        even = torch.arange(0, size, 2)
        rotation = rotation.index_put((even, even), torch.cos(angle))
        rotation = rotation.index_put((even, even + 1), -torch.sin(angle))
        rotation = rotation.index_put((even + 1, even), torch.sin(angle))
        rotation = rotation.index_put((even + 1, even + 1), torch.cos(angle))
        rows.append(rotation @ (householder @ row))
    return torch.stack(rows)


def decay_slopes(num_heads, layer, num_layers):
    """-log(lambda) of each head, as in the released weights (ALiBi's slopes, fading with depth)."""

    def power_of_two(n):
        return [2 ** (-8 * (h + 1) / n) for h in range(n)]

    power = 2 ** math.floor(math.log2(num_heads))
    slopes = power_of_two(power)
    if power != num_heads:
        slopes += power_of_two(2 * power)[0::2][: num_heads - power]
    return [s * (1 - layer / (num_layers - 1) + 1e-5) for s in slopes]


# Layers. h [T, C] is the normalised input; each returns the attention branch.


def linear(w, name, x):
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def softmax_core(q, k, v):
    """One head: q, k, v [T, D] -> [T, D]."""
    logits = q @ k.T / math.sqrt(q.shape[1])
    logits = logits.masked_fill(~causal(len(q)), -math.inf)
    return torch.softmax(logits, -1) @ v


def softmax_layer(config, w, prefix, h):
    size, group = config["size"], config["num_heads"] // config["kv_heads"]
    q, k, v = (linear(w, prefix + f"self_attn.{n}_proj", h) for n in "qkv")
    frequencies, factor = rope_frequencies(config["rope_scaling"], size)
    heads = []
    for i in range(config["num_heads"]):
        qi = q[:, i * size:(i + 1) * size]
        j = i // group
        kj, vj = k[:, j * size:(j + 1) * size], v[:, j * size:(j + 1) * size]
        if config["qk_norm"]:
            qi = rms_norm(qi, config["norm_eps"], w[prefix + "self_attn.q_norm.weight"])
            kj = rms_norm(kj, config["norm_eps"], w[prefix + "self_attn.k_norm.weight"])
        qi, kj = rope(qi, frequencies, factor), rope(kj, frequencies, factor)
        heads.append(softmax_core(qi, kj, vj))
    return linear(w, prefix + "self_attn.o_proj", torch.cat(heads, -1))


def lightning_layer(config, w, prefix, h, layer):
    q, k, v, u = linear(w, prefix + "token_mixer.qkvu_proj", h).chunk(4, dim=-1)
    size, distance = config["size"], torch.arange(len(h))[:, None] - torch.arange(len(h))[None, :]
    theta = w.get(prefix + "token_mixer.lrpe.theta")
    heads = []
    for i, slope in enumerate(decay_slopes(config["num_heads"], layer, config["num_layers"])):
        qi, ki, vi = (x[:, i * size:(i + 1) * size] for x in (q, k, v))
        qi, ki = silu(qi), silu(ki)
        if theta is not None:
            qi, ki = lrpe(qi, theta[i, 0]), lrpe(ki, theta[i, 0])
        decay = torch.where(causal(len(h)), torch.exp(-slope * distance.clamp(min=0).double()), 0.0)
        heads.append((qi @ ki.T * decay.to(qi.dtype)) @ vi)
    out = rms_norm(torch.cat(heads, -1), config["norm_eps"])
    return linear(w, prefix + "token_mixer.out_proj", u * out)


def norm_attention_layer(config, w, prefix, h):
    q, k, v = (linear(w, prefix + f"token_mixer.{n}_proj", h) for n in "qkv")
    feature = elu if config["variant"] == "t1" else lambda x: 1 + elu(x)
    encode = lambda x: urpe(feature(x), w[prefix + "token_mixer.urpe.theta"],
                            w[prefix + "token_mixer.urpe.reflection"])
    heads = []
    for i in range(config["num_heads"]):
        qi, ki, vi = (x[:, i * config["size"]:(i + 1) * config["size"]] for x in (q, k, v))
        heads.append((encode(qi) @ encode(ki).T * causal(len(h))) @ vi)
    out = rms_norm(torch.cat(heads, -1), config["norm_eps"])
    return linear(w, prefix + "token_mixer.out_proj", out)


def diag_attention_layer(config, w, prefix, h):
    q, k, v = (linear(w, prefix + f"token_mixer.{n}_proj", h) for n in "qkv")
    encode = lambda x: urpe(x, w[prefix + "token_mixer.urpe.theta"],
                            w[prefix + "token_mixer.urpe.reflection"])
    t1, heads = config["variant"] == "t1", []
    for i in range(config["num_heads"]):
        qi, ki, vi = (x[:, i * config["size"]:(i + 1) * config["size"]] for x in (q, k, v))
        blocks = []
        for qb, kb, vb in zip(*(x.split(config["block_size"]) for x in (qi, ki, vi))):
            logits = encode(qb / math.sqrt(config["size"])) @ encode(kb).T
            if t1:
                weights = torch.relu(logits) * causal(len(qb))
            else:
                weights = torch.softmax(logits.masked_fill(~causal(len(qb)), -math.inf), -1)
            blocks.append(weights @ vb)
        heads.append(torch.cat(blocks))
    out = torch.cat(heads, -1)
    if t1:
        out = rms_norm(out, config["norm_eps"])
    return linear(w, prefix + "token_mixer.out_proj", out)


def document_logits(config, w, tokens):
    """Logits [T, V] of one document. `config` is a golden's "config": models/config_json.h."""
    eps = config["norm_eps"]
    config = dict(config, size=config["head_dim"] or config["hidden_size"] // config["num_heads"],
                  kv_heads=config["num_kv_heads"] or config["num_heads"])
    x = w["model.embed_tokens.weight"][tokens]
    if config["scale_embedding"]:
        x = x * math.sqrt(config["hidden_size"])
    if config["embedding_norm"]:
        x = rms_norm(x, eps)
    for layer in range(config["num_layers"]):
        prefix = f"model.layers.{layer}."
        kind = config["layer_pattern"][layer % len(config["layer_pattern"])]
        if kind == "softmax":
            h = rms_norm(x, eps, w[prefix + "input_layernorm.weight"])
            x = x + softmax_layer(config, w, prefix, h)
            h = rms_norm(x, eps, w[prefix + "post_attention_layernorm.weight"])
            gate, up = (linear(w, prefix + f"mlp.{n}_proj", h) for n in ("gate", "up"))
            x = x + linear(w, prefix + "mlp.down_proj", silu(gate) * up)
            continue
        h = rms_norm(x, eps)
        if kind == "lightning":
            x = x + lightning_layer(config, w, prefix, h, layer)
        elif kind == "norm_attention":
            x = x + norm_attention_layer(config, w, prefix, h)
        else:
            x = x + diag_attention_layer(config, w, prefix, h)
        h = rms_norm(x, eps)
        first, second = (linear(w, prefix + f"channel_mixer.{n}", h) for n in ("l1", "l2"))
        unit = first * second if kind == "lightning" else silu(first) * second
        x = x + linear(w, prefix + "channel_mixer.l3", unit)
    x = rms_norm(x, eps, w["model.norm.weight"] if config["final_norm_gain"] else None)
    return x @ w["model.embed_tokens.weight" if config["tie_embeddings"] else "lm_head.weight"].T


def document_loss(config, w, tokens, targets):
    """Sum of the losses of the tokens whose target is not negative; and the logits."""
    logits = document_logits(config, w, tokens)
    logits = logits.to(wide(logits.dtype))
    log_probability = logits - torch.logsumexp(logits, -1, keepdim=True)
    valid = targets >= 0
    picked = log_probability[torch.arange(len(tokens)), targets.clamp(min=0)]
    return -(picked * valid).sum(), logits
