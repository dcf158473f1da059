#!/usr/bin/env python3
"""Throughput of layouts: the same training run spread over ranks in different ways, beside one rank.

On CPUs every rank has one thread; on GPUs every rank has one GPU, or all share one (correctness only).
Each case is `mpirun -np N evenkeel train` on made-up documents; the figures are medians over the steps
after the warm-up. The first loss of every case has to be that of the first case.

Examples:
  benchmarks/layouts.py --device cpu
  benchmarks/layouts.py --device cuda --evenkeel build/cuda/launch/evenkeel --cases '1b .*' --out /tmp/l
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile


def case(name, ranks, config, sequence, batch, *settings, micro=1):
    return {"name": name, "ranks": ranks, "config": config, "settings": [
        f"data.sequence_length={sequence}", f"train.global_batch_size={batch}",
        f"train.micro_batch_size={micro}", *settings]}


def p(*pairs):
    return [f"parallel.{pair}" for pair in pairs]


QUICKSTART, LLAMA, TNL = ("configs/quickstart.yaml", "configs/llama_1b.yaml",
                          "configs/transnormerllm_1b.yaml")

CPU_CASES = [
    case("1 rank", 1, QUICKSTART, 8192, 8),
    case("dp 2", 2, QUICKSTART, 8192, 8, *p("dp=2")),
    case("dp 2, ZeRO 1", 2, QUICKSTART, 8192, 8, *p("dp=2", "zero=1")),
    case("dp 2, ZeRO 3", 2, QUICKSTART, 8192, 8, *p("dp=2", "zero=3")),
    case("tp 2", 2, QUICKSTART, 8192, 8, *p("tp=2")),
    case("cp 2, gather", 2, QUICKSTART, 8192, 8, *p("cp=2")),
    case("cp 2, ring and scan", 2, QUICKSTART, 8192, 8,
         *p("cp=2", "attention=ring", "linear_attention=scan")),
    case("cp 2, Ulysses", 2, QUICKSTART, 8192, 8, *p("cp=2", "attention=ulysses")),
    case("pp 2", 2, QUICKSTART, 8192, 8, *p("pp=2")),
]


def gpu_cases(gpus):
    """8K tokens in 16 sequences, 32K in 4, and 128K in one, whatever the number of GPUs."""
    cases = [case("1b 8K 1 GPU", 1, LLAMA, 8192, 16, micro=2)]
    n = gpus
    cases += [case(f"1b 8K dp {n}, ZeRO {z}", n, LLAMA, 8192, 16, *p(f"dp={n}", f"zero={z}"), micro=2)
              for z in range(4)]
    cases += [case(f"1b 8K tp {t}", t, LLAMA, 8192, 16, *p(f"tp={t}"), micro=2)
              for t in (2, 4, 8) if t <= n]
    cases += [case(f"1b 8K pp {n}", n, LLAMA, 8192, 16, *p(f"pp={n}")),
              case(f"1b 8K pp {n} x 2", n, LLAMA, 8192, 16, *p(f"pp={n}", "virtual_stages=2"))]
    if n >= 4:
        cases.append(case(f"1b 8K dp {n // 2} tp 2", n, LLAMA, 8192, 16,
                          *p(f"dp={n // 2}", "tp=2"), micro=2))
    cases.append(case("1b 32K 1 GPU", 1, LLAMA, 32768, 4))
    for form in ("gather", "ring", "ulysses"):
        cases.append(case(f"1b 32K cp {n}, {form}", n, LLAMA, 32768, 4,
                          *p(f"cp={n}", f"attention={form}")))
    cases.append(case("tnl 1b 32K 1 GPU", 1, TNL, 32768, 4))
    for form in ("gather", "scan"):
        for k, batch in ((32, 4), (128, 1)):
            cases.append(case(f"tnl 1b {k}K cp {n}, {form}", n, TNL, k * 1024, batch,
                              *p(f"cp={n}", f"linear_attention={form}")))
    return cases


def make_data(evenkeel, folder):
    """Documents of 1 to 4 times 128K bytes: every sample is one piece of one document."""
    os.makedirs(folder, exist_ok=True)
    text = os.path.join(folder, "documents.jsonl")
    state = 1
    with open(text, "w", encoding="utf-8") as file:
        for document in range(12):
            words = []
            for _ in range(40000 * (1 + document % 4)):
                state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
                words.append(f"{(state >> 33) % 997:03d}")
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    prefix = os.path.join(folder, "documents")
    subprocess.run([evenkeel, "data", "build", text, "-o", prefix], check=True,
                   stdout=subprocess.DEVNULL)
    return prefix


def run(options, prefix, which, folder):
    settings = which["settings"] + [
        f"folder={folder}", f"data.train={prefix}", "data.validation=", "train.eval_every=0",
        f"train.steps={options.warm_up + options.steps}", "train.warmup_steps=1",
        "checkpoint.every=-1", f"runtime.device={options.device}", "runtime.timeout_s=120"]
    if options.device == "cpu":
        settings.append("runtime.threads=1")
    if options.ranks_per_gpu > 1:
        settings.append(f"runtime.ranks_per_gpu={options.ranks_per_gpu}")
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(which["ranks"]),
               options.evenkeel, "train", "--config", which["config"]]
    for setting in settings + options.set:
        command += ["--set", setting]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            timeout=options.limit)
    metrics = os.path.join(folder, "metrics.jsonl")
    if result.returncode != 0 or not os.path.exists(metrics):
        raise RuntimeError(result.stdout[-1500:])
    with open(metrics, encoding="utf-8") as file:
        steps = [entry for entry in map(json.loads, file) if "tokens_per_s" in entry]
    timed = steps[options.warm_up:]
    median = lambda key: statistics.median(entry[key] for entry in timed)
    return {"name": which["name"], "ranks": which["ranks"], "first_loss": steps[0]["loss"],
            "tokens_per_s": median("tokens_per_s"), "step_ms": median("step_ms"),
            "mfu": median("mfu"), "exposed_comm_ms": median("exposed_comm_ms"),
            "memory_gib": max(entry["memory"] for entry in timed) / 2**30}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--gpus", type=int, default=4, help="GPUs to spread over")
    parser.add_argument("--ranks-per-gpu", type=int, default=1)
    parser.add_argument("--evenkeel", help="the program (build/PRESET/launch/evenkeel)")
    parser.add_argument("--cases", default=".", help="regular expression of cases to run")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--limit", type=float, default=600, help="seconds a case may take")
    parser.add_argument("--set", action="append", default=[], help="more settings, key=value")
    parser.add_argument("--out", help="folder that receives layouts.jsonl")
    options = parser.parse_args()
    options.evenkeel = options.evenkeel or f"build/{options.device}/launch/evenkeel"
    cases = CPU_CASES if options.device == "cpu" else gpu_cases(options.gpus)
    cases = [each for each in cases if re.search(options.cases, each["name"])]
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        prefix = make_data(options.evenkeel, os.path.join(work, "data"))
        print(f"{'layout':28} {'ranks':>5} {'tokens/s':>10} {'x':>6} {'step ms':>9} {'MFU':>6} "
              f"{'exposed':>8} {'GiB':>6} {'loss 1':>9}", flush=True)
        base, lines = {}, []
        for which in cases:
            folder = os.path.join(work, "run")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                line = run(options, prefix, which, folder)
            except (RuntimeError, subprocess.TimeoutExpired, KeyError) as error:
                print(f"{which['name']:28} failed: {error}", flush=True)
                failed += 1
                continue
            # Against the last case on one rank.
            if which["ranks"] == 1:
                base = line
            line["speedup"] = line["tokens_per_s"] / base["tokens_per_s"] if base else float("nan")
            lines.append(line)
            print(f"{line['name']:28} {line['ranks']:5d} {line['tokens_per_s']:10.0f} "
                  f"{line['speedup']:6.2f} {line['step_ms']:9.1f} {line['mfu']:6.3f} "
                  f"{line['exposed_comm_ms'] / line['step_ms']:8.1%} {line['memory_gib']:6.2f} "
                  f"{line['first_loss']:9.5f}", flush=True)
        if options.out:
            os.makedirs(options.out, exist_ok=True)
            with open(os.path.join(options.out, "layouts.jsonl"), "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
