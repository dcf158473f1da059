#!/usr/bin/env python3
"""Writes the golden files that tests/unit/models/golden_test.cc compares with.

    python3 tests/golden/make_goldens.py [name ...]

Needs PyTorch and safetensors (`pip install torch safetensors`); nothing else in the project does, and
the tests only read what this wrote. Each case is NAME.json (config, batch, loss, and the loss and
gradient norm before each of 50 steps of torch.optim.AdamW) and NAME.safetensors (weights, stored as
float32 values that float64 holds exactly; "logits" of the whole batch; "gradient.P" of every trained
parameter P). All arithmetic is float64, document by document (reference.py).

Clipping multiplies the gradients by clip / norm where the norm is larger than clip: the definition,
without the 1e-6 that torch.nn.utils.clip_grad_norm_ adds to the norm.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

import reference

FOLDER = pathlib.Path(__file__).parent
# 1, 2, primes, more and less than a chunk of lightning attention (32) or a block of diag_attention.
LENGTHS = [1, 41, 2, 7, 64, 13, 1, 3]
STEPS = 50
# With this rate and the weights of make_weights the curves are well-conditioned: PyTorch against itself,
# weights moved by 1e-16, differs by about 1e-12 after fifty steps. (At three times the rate, by 1e-7.)
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}

ROPE = {"rope_type": "none", "rope_theta": 10000.0, "factor": 1.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "attention_factor": 0.0}
BASE = {"layer_pattern": ["softmax"], "vocab_size": 41, "hidden_size": 16, "intermediate_size": 22,
        "num_layers": 3, "num_heads": 4, "num_kv_heads": 0, "head_dim": 0, "norm_eps": 1e-6,
        "max_position_embeddings": 0, "tie_embeddings": False, "scale_embedding": False,
        "embedding_norm": False, "final_norm_gain": True, "rope_scaling": ROPE, "qkv_bias": False,
        "qk_norm": False, "lrpe_layers": [0], "variant": "t2", "block_size": 64, "init_std": 0.02,
        "depth_scaled_init": False}
TRANSNORMER_V1 = {"layer_pattern": ["diag_attention", "diag_attention", "norm_attention",
                                    "norm_attention"],
                  "num_layers": 4, "num_heads": 2, "block_size": 8, "embedding_norm": True,
                  "final_norm_gain": False, "tie_embeddings": True}
CASES = {
    "llama_gqa": {"num_kv_heads": 2, "norm_eps": 1e-5},
    # Heads that are no power of two, as in TransNormerLLM 3B.
    "transnormerllm": {"layer_pattern": ["lightning"], "hidden_size": 24, "num_heads": 3,
                       "intermediate_size": 20, "tie_embeddings": True, "scale_embedding": True,
                       "final_norm_gain": False},
    "hybrid": {"layer_pattern": ["lightning", "lightning", "softmax"], "num_layers": 4,
               "num_kv_heads": 1, "head_dim": 6, "tie_embeddings": True, "lrpe_layers": [0, 3]},
    "transnormer_v1_t1": dict(TRANSNORMER_V1, variant="t1"),
    "transnormer_v1_t2": dict(TRANSNORMER_V1, variant="t2"),
    # Scalings whose original context the longest document exceeds, so that every branch of them acts.
    "qwen2_llama3_rope": {"num_heads": 2, "num_kv_heads": 1, "qkv_bias": True, "tie_embeddings": True,
                          "rope_scaling": dict(ROPE, rope_type="llama3", factor=8.0,
                                               original_max_position_embeddings=32.0,
                                               rope_theta=500.0)},
    "qwen3_yarn": {"num_kv_heads": 2, "head_dim": 12, "qk_norm": True, "num_layers": 2,
                   "rope_scaling": dict(ROPE, rope_type="yarn", factor=4.0, rope_theta=1000.0,
                                        beta_fast=4.0, original_max_position_embeddings=32.0)},
}


def parameter_shapes(c):
    """Name -> shape, in the order of models/parameters.h."""
    width, ffn, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    size = c["head_dim"] or width // c["num_heads"]
    q, kv = c["num_heads"] * size, (c["num_kv_heads"] or c["num_heads"]) * size
    shapes = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(c["num_layers"]):
        kind = c["layer_pattern"][layer % len(c["layer_pattern"])]
        p = f"model.layers.{layer}."
        if kind == "softmax":
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                shapes[p + f"self_attn.{name}_proj.weight"] = (rows, width)
                if c["qkv_bias"]:
                    shapes[p + f"self_attn.{name}_proj.bias"] = (rows,)
            if c["qk_norm"]:
                shapes[p + "self_attn.q_norm.weight"] = shapes[p + "self_attn.k_norm.weight"] = (size,)
            shapes[p + "self_attn.o_proj.weight"] = (width, q)
            shapes[p + "input_layernorm.weight"] = (width,)
            shapes[p + "post_attention_layernorm.weight"] = (width,)
            shapes[p + "mlp.gate_proj.weight"] = shapes[p + "mlp.up_proj.weight"] = (ffn, width)
            shapes[p + "mlp.down_proj.weight"] = (width, ffn)
            continue
        if kind == "lightning":
            shapes[p + "token_mixer.qkvu_proj.weight"] = (4 * q, width)
            if layer in c["lrpe_layers"]:
                shapes[p + "token_mixer.lrpe.theta"] = (c["num_heads"], 1, size)
        else:
            for name in ("q_proj", "k_proj", "v_proj"):
                shapes[p + f"token_mixer.{name}.weight"] = (q, width)
                shapes[p + f"token_mixer.{name}.bias"] = (q,)
            shapes[p + "token_mixer.urpe.theta"] = (size // 2,)
            shapes[p + "token_mixer.urpe.reflection"] = (size,)
            shapes[p + "token_mixer.out_proj.bias"] = (width,)
            shapes[p + "channel_mixer.l1.bias"] = shapes[p + "channel_mixer.l2.bias"] = (ffn,)
            shapes[p + "channel_mixer.l3.bias"] = (width,)
        shapes[p + "token_mixer.out_proj.weight"] = (width, q)
        shapes[p + "channel_mixer.l1.weight"] = shapes[p + "channel_mixer.l2.weight"] = (ffn, width)
        shapes[p + "channel_mixer.l3.weight"] = (width, ffn)
    if c["final_norm_gain"]:
        shapes["model.norm.weight"] = (width,)
    if not c["tie_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def make_weights(config, generator):
    """Random weights at which no gradient is zero by symmetry; float32 values held in float64."""
    weights = {}
    for name, shape in parameter_shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        count = noise.numel()
        index = torch.arange(count, dtype=torch.float64).reshape(shape)
        if name.endswith("lrpe.theta"):
            value = 10000 ** (-2 * index / count) * (1 + 0.1 * noise)
        elif name.endswith("urpe.theta"):
            value = 10000 ** (-index / count) * (1 + 0.1 * noise)
        elif name.endswith("urpe.reflection"):
            value = noise / noise.norm()
        elif len(shape) == 2:
            value = 0.2 * noise
        else:
            value = 0.2 * noise + (1 if name.endswith("norm.weight") else 0)
        weights[name] = value.float().double()
    return weights


def make_batch(vocab_size, generator):
    """Documents whose last token has a target too (a piece of a longer document); one in six ignored."""
    documents = []
    for length in LENGTHS:
        text = torch.randint(vocab_size, (length + 1,), generator=generator)
        ignored = torch.rand(length, generator=generator) < 1 / 6
        documents.append((text[:-1], torch.where(ignored, -1, text[1:])))
    return documents


def is_trained(name):
    return not name.endswith("urpe.reflection")


def decays(tensor):
    return tensor.dim() == 2


def batch_loss(config, weights, documents):
    """Mean loss over the tokens with a target, and the documents' logits end to end."""
    valid = sum(int((targets >= 0).sum()) for _, targets in documents)
    parts = [reference.document_loss(config, weights, *document) for document in documents]
    return sum(loss for loss, _ in parts) / valid, torch.cat([logits for _, logits in parts])


def train(config, weights, documents):
    """Losses and gradient norms before each step, and the loss after the last."""
    matrices = [w for n, w in weights.items() if is_trained(n) and decays(w)]
    others = [w for n, w in weights.items() if is_trained(n) and not decays(w)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": ADAMW["weight_decay"]},
         {"params": others, "weight_decay": 0.0}],
        lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"])
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = batch_loss(config, weights, documents)
        loss.backward()
        norm = torch.sqrt(sum(w.grad.pow(2).sum() for w in matrices + others))
        if norm > ADAMW["clip_norm"]:
            for w in matrices + others:
                w.grad *= ADAMW["clip_norm"] / norm
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    losses.append(batch_loss(config, weights, documents)[0].item())
    return losses, norms


def write_case(name, seed):
    config = dict(BASE, **CASES[name])
    generator = torch.Generator().manual_seed(seed)
    weights = make_weights(config, generator)
    documents = make_batch(config["vocab_size"], generator)
    tensors = {n: w.float() for n, w in weights.items()}
    for n, w in weights.items():
        w.requires_grad_(is_trained(n))
    loss, logits = batch_loss(config, weights, documents)
    loss.backward()
    for n, w in weights.items():
        if is_trained(n):
            assert w.grad.norm() > 1e-8, n
            tensors["gradient." + n] = w.grad.clone()
    tensors["logits"] = logits.detach().clone()
    losses, norms = train(config, weights, documents)
    save_file(tensors, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})
    golden = {"config": config, "lengths": LENGTHS,
              "tokens": torch.cat([t for t, _ in documents]).tolist(),
              "targets": torch.cat([t for _, t in documents]).tolist(),
              "loss": loss.item(), "adamw": ADAMW, "step_losses": losses, "gradient_norms": norms}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    (FOLDER / f"{name}.json").write_text("{\n" + lines + "\n}\n")
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, gradient norm {norms[0]:.3f} -> "
          f"{norms[-1]:.3f}")


def main():
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            write_case(name, seed + 1)


if __name__ == "__main__":
    main()
