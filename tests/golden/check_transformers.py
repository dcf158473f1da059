#!/usr/bin/env python3
"""Checks by hand that transformers and this program agree on what a Hugging Face folder means.

    python3 tests/golden/check_transformers.py [--build build/cpu]

Needs PyTorch and transformers (`pip install torch transformers`), and the targets evenkeel and
ek_dump_logits built. Both ways: models that transformers saved (float32, bfloat16, in shards, with the
config keys of transformers 4 and 5) are loaded here, and models trained and exported here are loaded by
AutoModelForCausalLM. Logits must agree to 1e-4 in float32 and 1e-8 in float64, relative to the largest.

transformers computes norms, softmax and rotary tables in float32 whatever the model's type, so for the
float64 comparison `exact` makes its float32 mean float64.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = {"float32": 1e-4, "float64": 1e-8}
LENGTHS = [1, 67, 2, 31]
SHAPE = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "beta_fast": 4.0,
        "original_max_position_embeddings": 32}
# Name: class prefix, changes to SHAPE.
THEIR_MODELS = {
    "llama": ("Llama", {}),
    "llama tied, one kv head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1,
                                          "rms_norm_eps": 1e-5}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0,
                                                         "rope_theta": 1e4}}),
    "llama, yarn rope": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn by defaults": ("Llama", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0,
                                                              "rope_theta": 1e4}}),
    "llama, yarn with mscale": ("Llama", {"rope_parameters": dict(YARN, mscale=0.9,
                                                                  mscale_all_dim=0.4)}),
    "llama, yarn with attention factor": ("Llama", {"rope_parameters": dict(YARN,
                                                                            attention_factor=1.3)}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied, yarn": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3, llama3 rope": ("Qwen3", {"head_dim": 16, "rope_parameters": LLAMA3}),
}
# Changes to the `model` section of a run config.
OUR_MODELS = {
    "llama": ["model.num_kv_heads=2"],
    "llama tied, llama3 rope": ["model.tie_embeddings=true", "model.rope_scaling.type=llama3",
                                "model.rope_scaling.factor=8", "model.rope_theta=500",
                                "model.rope_scaling.original_max_position_embeddings=32"],
    "qwen2": ["model.qkv_bias=true", "model.num_kv_heads=1"],
    "qwen3, yarn": ["model.qk_norm=true", "model.head_dim=12", "model.rope_scaling.type=yarn",
                    "model.rope_scaling.factor=4", "model.rope_theta=1000",
                    "model.rope_scaling.beta_fast=4",
                    "model.rope_scaling.original_max_position_embeddings=32"],
}


@contextlib.contextmanager
def exact(dtype):
    """With float64, makes torch's float32 mean float64."""
    if dtype == "float32":
        yield
        return
    kept = torch.float, torch.float32, torch.Tensor.float
    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float, torch.float32, torch.Tensor.float = kept


def their_logits(folder, documents, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype),
                                                 attn_implementation="eager").eval()
    with torch.no_grad(), exact(dtype):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        return torch.cat([model(tokens[None]).logits[0] for tokens in documents])


class Checker:
    def __init__(self, build, work):
        self.build, self.work, self.failures = build, work, 0
        generator = torch.Generator().manual_seed(7)
        self.documents = [torch.randint(SHAPE["vocab_size"], (n,), generator=generator)
                          for n in LENGTHS]
        self.tokens = work / "tokens.txt"
        self.tokens.write_text("\n".join(" ".join(map(str, d.tolist())) for d in self.documents))

    def run(self, *command):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")

    def evenkeel(self, *arguments):
        self.run(self.build / "launch" / "evenkeel", *arguments)

    def our_logits(self, folder, dtype):
        output = self.work / "logits.safetensors"
        self.run(self.build / "tests/unit/models/ek_dump_logits", folder, self.tokens, output, dtype)
        return load_file(output)["logits"]

    def compare(self, name, folder, their_folder=None):
        for dtype, tolerance in TOLERANCE.items():
            theirs = their_logits(their_folder or folder, self.documents, dtype)
            ours = self.our_logits(folder, dtype)
            error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
            good = error <= tolerance  # false for NaN
            self.failures += not good
            print(f"{'good' if good else 'BAD '}  {name}, {dtype}: {error:.1e}", flush=True)

    def their_model(self, prefix, changes):
        """A random model, biases and gains included, in float32."""
        config = getattr(transformers, prefix + "Config")(**dict(SHAPE, **changes))
        torch.manual_seed(11)
        model = getattr(transformers, prefix + "ForCausalLM")(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(0.15 * noise + (1 if name.endswith("norm.weight") else 0))
        return model

    def check_theirs(self):
        for name, (prefix, changes) in THEIR_MODELS.items():
            folder = self.work / name.replace(" ", "_").replace(",", "")
            self.their_model(prefix, changes).save_pretrained(folder)
            self.compare("theirs: " + name, folder)

        # The same rotary scaling as transformers 4 wrote it.
        for name, rope in (("llama3", LLAMA3), ("yarn", YARN)):
            folder = self.work / f"llama_{name}_rope"
            old = self.work / f"llama_{name}_keys_of_4"
            shutil.copytree(folder, old)
            config = json.loads((old / "config.json").read_text())
            scaling = config.pop("rope_parameters")
            config["rope_theta"] = scaling.pop("rope_theta")
            if name == "yarn":
                scaling["type"] = scaling.pop("rope_type")
            config["rope_scaling"] = scaling
            (old / "config.json").write_text(json.dumps(config))
            self.compare(f"theirs: llama, {name} rope, config of transformers 4", old)

        model = self.their_model("Llama", {"rope_parameters": LLAMA3})
        model.save_pretrained(self.work / "sharded", max_shard_size="20KB")
        shards = len(list((self.work / "sharded").glob("*.safetensors")))
        assert shards > 2, shards
        self.compare(f"theirs: llama in {shards} shards", self.work / "sharded")
        model.to(torch.bfloat16).save_pretrained(self.work / "bf16", max_shard_size="40KB")
        self.compare("theirs: llama in bfloat16 shards", self.work / "bf16")

    def check_ours(self):
        text = self.work / "text.txt"
        text.write_text("".join(f"line {i} of a text that nobody reads: {i * i}\n" for i in range(500)))
        self.evenkeel("data", "build", text, "--output", self.work / "data")
        config = self.work / "run.yaml"
        config.write_text(f"""
model: {{vocab_size: 257, hidden_size: 32, intermediate_size: 44, num_layers: 3, num_heads: 4,
        init_std: 0.2}}
data: {{train: {self.work}/data, sequence_length: 128}}
train: {{steps: 5, lr: 1e-2, global_batch_size: 2}}
""")
        for name, overrides in OUR_MODELS.items():
            stem = name.replace(" ", "_").replace(",", "")
            run, exported = self.work / f"run_{stem}", self.work / f"exported_{stem}"
            sets = [part for o in overrides + [f"folder={run}"] for part in ("--set", o)]
            self.evenkeel("train", "--config", config, *sets)
            self.evenkeel("checkpoint", "export", run, exported)
            self.compare("ours: " + name, exported)
            self.evenkeel("checkpoint", "export", run, f"{exported}_bf16", "--dtype", "bfloat16")
            self.compare(f"ours: {name}, exported in bfloat16", f"{exported}_bf16")
            # There and back: what transformers loaded from us and saved.
            again = f"{exported}_again"
            AutoModelForCausalLM.from_pretrained(exported).save_pretrained(again)
            self.compare(f"ours: {name}, saved again by transformers", again)

        # A key that another program changed counts, although ours still say otherwise.
        edited = self.work / "edited"
        model = AutoModelForCausalLM.from_pretrained(self.work / "exported_llama")
        model.config.rope_parameters["rope_theta"] = 100.0
        model.save_pretrained(edited)
        assert "evenkeel" in json.loads((edited / "config.json").read_text())
        self.compare("ours: llama, rope_theta edited by transformers", edited)


def main():
    parser = argparse.ArgumentParser(description="Compares logits with transformers, both ways.")
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/cpu"))
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as work:
        checker = Checker(arguments.build.resolve(), pathlib.Path(work))
        checker.check_theirs()
        checker.check_ours()
    print(f"{checker.failures} disagreements")
    return 1 if checker.failures else 0


if __name__ == "__main__":
    sys.exit(main())
