#!/usr/bin/env python3
"""Step times of disaggregated attention beside data and context parallelism, on real lengths.

Documents have the lengths of a list (JSON), prepared as the DistCA paper's scripts do: half of those
below 64K, those above four times, in random order, then scaled so that 64K becomes the context. Every
case is the same training on the same documents; on CPUs every rank has one thread. Figures are those of
metrics.jsonl, medians over the steps after the warm-up, each case run --rounds times in turn:

  step      ms
  x (a)     speed beside plain data parallelism over as many ranks
  idle      share of a step that ranks wait for others, the mean over the ranks
  planned   heaviest over mean load of the attention servers by the plan
  measured  the same of the time they took
  sent      most MB a rank sends in a step

Examples:
  benchmarks/disaggregation.py --lengths pretrain.json
  benchmarks/disaggregation.py --lengths pretrain.json --cases 'dp' --context 32768 --out /tmp/d
  benchmarks/disaggregation.py --lengths pretrain.json --device cuda --ranks 4 \\
      --evenkeel build/cuda/launch/evenkeel --config configs/llama_1b.yaml --context 131072
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

import datasets
import training_run

LONG = 65536
SMALL = ["model.layer_pattern=[softmax]"]


def prepare(lengths, context, tokens, seed):
    """Returns lengths of documents of `tokens` tokens together."""
    half = lengths[:len(lengths) // 2]
    documents = [n for n in half if n < LONG] + 4 * [n for n in half if n >= LONG]
    chosen = random.Random(seed)
    chosen.shuffle(documents)
    result = []
    for length in documents:
        result.append(max(2, min(context, length * context // LONG)))
        if sum(result) >= tokens:
            return result
    sys.exit(f"the list has no {tokens} tokens: fewer steps, please")


def cases(ranks):
    """(name, settings): of `parallel`, and, after a +, of `train`."""
    pooled = "attention=disaggregated"
    result = [
        (f"dp {ranks}: (a) data parallel", [f"dp={ranks}"]),
        (f"dp {ranks}: (b) per-document cp", [f"cp={ranks}"]),
        (f"dp {ranks}: (c) disaggregated", [f"dp={ranks}", pooled]),
        (f"dp {ranks}: (c) ping-pong", [f"dp={ranks}", pooled, "ping_pong=on"]),
        (f"dp {ranks}: (c) one stream", [f"dp={ranks}", pooled, "ping_pong=serial"]),
        (f"dp {ranks}: (c) signal", [f"dp={ranks}", pooled, "attention_messages=signal"]),
    ]
    for tolerance in ("0.01", "0.2", "0.5"):
        result.append((f"dp {ranks}: (c) tolerance {tolerance}",
                       [f"dp={ranks}", pooled, f"attention_tolerance={tolerance}"]))
    result.append((f"pp {ranks}: (a) 1F1B", [f"pp={ranks}"]))
    result.append((f"pp {ranks}: (c) disaggregated", [f"pp={ranks}", pooled]))
    return result


def applies(setting, parallel):
    """Keys that only disaggregated attention reads are refused where attention is another."""
    return ("attention=disaggregated" in parallel or
            not setting.startswith(("parallel.attention_", "parallel.ping_pong=")))


def run(options, prefix, parallel, folder):
    shutil.rmtree(folder, ignore_errors=True)
    if options.cost and "attention=disaggregated" in parallel:
        parallel = parallel + [f"attention_cost={os.path.abspath(options.cost)}"]
    settings = training_run.settings_of(prefix, folder, options.context, options.batch,
                                        options.warm_up + options.steps, options.device,
                                        options.ranks_per_gpu)
    settings += [f"parallel.{setting}" for setting in parallel]
    if options.config == "configs/quickstart.yaml":
        settings += SMALL
    if "attention_messages=signal" in parallel:
        settings.append("train.on_nonfinite=skip")  # what is computed is wrong
    command = training_run.train(options.evenkeel, options.ranks, options.config,
                                 settings + [s for s in options.set if applies(s, parallel)],
                                 bind="core" if options.bind else "none")
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            timeout=options.limit, check=False)
    if result.returncode != 0:
        print(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout[-2000:]}")
        return []
    return training_run.rows_of(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", required=True, help="JSON list of document lengths")
    parser.add_argument("--evenkeel", default="build/cpu/launch/evenkeel")
    parser.add_argument("--config", default="configs/quickstart.yaml",
                        help="the quickstart's is run with softmax layers alone")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--ranks-per-gpu", type=int, default=1)
    parser.add_argument("--context", type=int, default=16384, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cost", help="what `evenkeel bench attention --json` measured here: (c) plans with it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bind", action="store_true", help="bind each rank to a core")
    parser.add_argument("--limit", type=float, default=600, help="seconds a run may take")
    parser.add_argument("--cases", default=".", help="regular expression of names")
    parser.add_argument("--set", action="append", default=[],
                        help="more settings for every case that has a use for them")
    parser.add_argument("--out", help="folder for the JSON")
    options = parser.parse_args()
    options.evenkeel = os.path.abspath(options.evenkeel)
    with open(options.lengths, encoding="utf-8") as file:
        lengths = json.load(file)
    steps = options.warm_up + options.steps
    wanted = [case for case in cases(options.ranks) if re.search(options.cases, case[0])]
    rows = {name: [] for name, _ in wanted}
    with tempfile.TemporaryDirectory(prefix="disaggregation_") as folder:
        documents = prepare(lengths, options.context, (steps + 1) * options.batch * options.context,
                            options.seed)
        prefix = os.path.join(folder, "documents")
        datasets.write(prefix, documents, training_run.vocabulary_of(options.config, options.set))
        for _ in range(options.rounds):
            for name, parallel in wanted:
                steps_of_run = run(options, prefix, parallel, os.path.join(folder, "run"))
                rows[name].append(steps_of_run[options.warm_up:])
    table = []
    print(f"{options.ranks} ranks on {options.device}, {options.batch} samples of "
          f"{options.context} tokens a step, {len(documents)} documents of "
          f"{statistics.mean(documents):.0f} tokens on average, {options.steps} steps, "
          f"{options.rounds} rounds")
    print(f"{'case':32} {'step ms':>9} {'x (a)':>6} {'idle':>7} {'planned':>8} {'measured':>9} "
          f"{'sent MB':>8} {'loss':>10}")
    base = {}
    for name, _ in wanted:
        runs = [steps_of_run for steps_of_run in rows[name] if steps_of_run]
        if not runs:
            print(f"{name:32} failed")
            continue
        # A step's documents are its own, so a run's time is the sum over its steps.
        step = statistics.median(sum(row["step_ms"] for row in steps_of_run) / len(steps_of_run)
                                 for steps_of_run in runs)
        mean = lambda key: statistics.mean(  # pylint: disable=cell-var-from-loop
            row[key] for steps_of_run in runs for row in steps_of_run if key in row)
        has = lambda key: key in runs[0][0]  # pylint: disable=cell-var-from-loop
        kind = name.split(":")[0]
        base.setdefault(kind, step)
        entry = {"case": name, "step_ms": step, "speed": base[kind] / step,
                 "idle": mean("exposed_comm_share"), "loss": runs[0][-1]["loss"]}
        for key in ("attention_planned_imbalance", "attention_imbalance", "most_sent_bytes"):
            entry[key] = mean(key) if has(key) else None
        table.append(entry)
        number = lambda value, form: "" if value is None else form.format(value)
        sent = entry["most_sent_bytes"]
        print(f"{name:32} {step:9.1f} {entry['speed']:6.2f} {100 * entry['idle']:6.1f}% "
              f"{number(entry['attention_planned_imbalance'], '{:.3f}'):>8} "
              f"{number(entry['attention_imbalance'], '{:.3f}'):>9} "
              f"{number(sent and sent / 1e6, '{:.1f}'):>8} {number(entry['loss'], '{:.6f}'):>10}")
        sys.stdout.flush()
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        with open(os.path.join(options.out, "disaggregation.json"), "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "cases": table}, file, indent=1)


if __name__ == "__main__":
    main()
