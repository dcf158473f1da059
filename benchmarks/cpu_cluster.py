#!/usr/bin/env python3
"""Measures the ranks of this host and writes them as a cluster that `evenkeel simulate` can use.

Trains the model of a config (softmax layers only) on one rank of one thread for a few steps, with long
and short samples and all or half of its layers, and fits by least squares
    step time = a + b layers + tokens (head + layers layer) + layers pairs pair
of the forward and backward pass and the optimizer. Forward is a third of what a token takes and two
sevenths of what a pair takes; a layer's time before core attention is to that after it as their weights.
The last rows are held out of the fit: how far a prediction of `evenkeel simulate` is off.

Example:
  benchmarks/cpu_cluster.py --config configs/tiny_llama.yaml --out /tmp/cpu_ranks.yaml
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from layouts import make_data  # noqa: E402

# (tokens of a sample, samples, share of the layers), and those to predict.
FITTED = [(256, 8, 1), (256, 32, 1), (2048, 2, 1), (2048, 4, 0.5), (8192, 1, 1), (8192, 1, 0.5),
          (256, 16, 0.5), (4096, 2, 1)]
HELD_OUT = [(1024, 6, 1), (6144, 1, 1), (3072, 3, 0.5)]


def solve(rows, values):
    """Least squares of rows x = values, each row in proportion to its value."""
    rows = [[x / value for x in row] for row, value in zip(rows, values)]
    n = len(rows[0])
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(n)] +
              [sum(row[i] for row in rows)] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(matrix[r][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for r in range(n):
            if r != i:
                factor = matrix[r][i] / matrix[i][i]
                matrix[r] = [a - factor * b for a, b in zip(matrix[r], matrix[i])]
    return [matrix[i][n] / matrix[i][i] for i in range(n)]


def solve_positive(rows, values):
    """The same with no negative part: what would be negative is left out, one after the other."""
    kept = list(range(len(rows[0])))
    while True:
        parts = solve([[row[i] for i in kept] for row in rows], values)
        if min(parts) >= 0:
            return [dict(zip(kept, parts)).get(i, 0.0) for i in range(len(rows[0]))]
        del kept[parts.index(min(parts))]


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.prefix = make_data(options.evenkeel, os.path.join(folder, "data"))
        printed = subprocess.run([options.evenkeel, "config", "check", options.config, "--print"],
                                 check=True, capture_output=True, text=True).stdout
        if re.search(r"layer_pattern: \[(?!softmax\])", printed):
            sys.exit(f"{options.config}: only models of softmax layers; set model.layer_pattern")
        def number(key):
            return int(re.search(rf"^  {key}: (\d+)", printed, re.M)[1])
        hidden, heads = number("hidden_size"), number("num_heads")
        size = number("head_dim") or hidden // heads
        kv_heads = number("num_kv_heads") or heads
        before = hidden * size * (heads + 2 * kv_heads)
        after = hidden * size * heads + 3 * hidden * number("intermediate_size")
        self.before_share = before / (before + after)
        self.layers = number("num_layers")

    def layers_of(self, share):
        return max(1, int(self.layers * share))

    def step_seconds(self, length, samples, share):
        """The fastest step: on a host that others use too, what comes nearest to undisturbed."""
        run = os.path.join(self.folder, f"run-{length}-{samples}-{share}")
        settings = {"folder": run, "data.train": self.prefix, "data.validation": "",
                    "data.sequence_length": length, "train.global_batch_size": samples,
                    "train.micro_batch_size": samples, "train.steps": 2 + self.options.steps,
                    "train.warmup_steps": 1, "train.eval_every": 0, "checkpoint.every": -1,
                    "model.num_layers": self.layers_of(share), "model.max_position_embeddings": 0,
                    "runtime.threads": 1, "runtime.device": "cpu", "runtime.peak_gflops": 1,
                    "runtime.recompute": "none"}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([self.options.evenkeel, "train", "--config", self.options.config, *words],
                       check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            steps = [entry["step_ms"] for entry in map(json.loads, file) if "step_ms" in entry]
        return min(steps[2:]) / 1e3

    def features(self, length, samples, share):
        layers, tokens = self.layers_of(share), length * samples
        return [1, layers, tokens, tokens * layers, layers * samples * length * (length + 1) / 2]

    def predict(self, cluster, length, samples, share):
        lengths = os.path.join(self.folder, "lengths.json")
        with open(lengths, "w", encoding="utf-8") as file:
            json.dump([length], file)
        output = subprocess.run(
            [self.options.evenkeel, "simulate", "--model", self.options.config, "--model-set",
             f"model.num_layers={self.layers_of(share)}", "--cluster", cluster, "--lengths", lengths,
             "-n", "1", "--tp", "1", "--max-doc-len", str(length), "--batch", str(samples),
             "--batches", "1", "--micro-batches", "1", "--recompute", "none", "--element-bytes", "4",
             "--json"], check=True, capture_output=True, text=True).stdout
        return json.loads(output)["systems"]["disaggregated"]["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny_llama.yaml")
    parser.add_argument("--evenkeel", default="build/cpu/launch/evenkeel")
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run")
    parser.add_argument("--copy-gb-s", type=float, default=4, help="of messages between ranks")
    parser.add_argument("--out", default="cpu_ranks.yaml", help="the cluster file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        measured = [bench.step_seconds(*case) for case in FITTED]
        a, b, head, layer, pair = solve_positive([bench.features(*case) for case in FITTED],
                                                 measured)
        before = bench.before_share
        rates = {"pre_forward_s": layer * before / 3, "pre_backward_s": layer * before * 2 / 3,
                 "post_forward_s": layer * (1 - before) / 3,
                 "post_backward_s": layer * (1 - before) * 2 / 3,
                 "head_forward_s": head / 3, "head_backward_s": head * 2 / 3,
                 "attention_forward_s": pair * 2 / 7, "attention_backward_s": pair * 5 / 7}
        def write(layers):
            with open(options.out, "w", encoding="utf-8") as file:
                file.write(f"# {options.config} on one thread of this host (benchmarks/cpu_cluster.py).\n"
                           "name: CPU ranks of this host\ngpus_per_node: 1024\nmemory_gb: 1000\n"
                           f"nvlink: {{gb_s: {options.copy_gb_s}, latency_us: 20}}\n"
                           f"network: {{gb_s: {options.copy_gb_s}, latency_us: 20}}\n"
                           f"products: {{copy_gb_s: {options.copy_gb_s}}}\n"
                           "attention: {tile: 1}\nmeasured:\n" +
                           "".join(f"  {key}: {value:.6g}\n" for key, value in rates.items()) +
                           f"  step_s: {a + b * layers:.6g}\n")
        print(f"{'tokens':>7} {'samples':>7} {'layers':>6} {'measured':>12} {'predicted':>12} error")
        for case in FITTED + HELD_OUT:
            write(bench.layers_of(case[2]))
            seconds = measured[FITTED.index(case)] if case in FITTED else bench.step_seconds(*case)
            predicted = bench.predict(options.out, *case)
            print(f"{case[0]:7} {case[1]:7} {bench.layers_of(case[2]):6} {seconds * 1e3:9.1f} ms "
                  f"{predicted * 1e3:9.1f} ms {100 * (predicted / seconds - 1):+5.1f} %"
                  f"{'' if case in FITTED else '  (held out)'}")
        write(bench.layers)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
