#!/usr/bin/env python3
"""Trains the same models by Evenkeel and by PyTorch on the same processor, in turn, and prints tokens
per second and memory side by side.

    benchmarks/cpu_vs_pytorch/run.py --python venv/bin/python [--json result.json]

`--python` names a Python that has torch; this script itself needs the standard library alone. Both
sides train about 10 M parameters in float32 with AdamW and clipping on --threads threads, on the same
documents of random text, one document a sequence. Settings of BLAS and OpenMP libraries in the
environment are dropped for both, so that each side runs as it is meant to.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHAPE = {"hidden_size": 320, "intermediate_size": 864, "num_layers": 8, "num_heads": 5,
         "vocab_size": 257}
TRAIN = {"lr": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip_norm": 1.0}
# (sequence, sequences a step, recompute, peers)
CASES = [(2048, 8, False, ("eager", "compiled")), (16384, 1, False, ("eager", "compiled")),
         (65536, 1, True, ())]
KINDS = {"softmax": "softmax", "TNL": "lightning"}


def clean_environment():
    dropped = ("OPENBLAS_", "MKL_", "OMP_", "GOTO_", "KMP_", "ATEN_", "DNNL_", "ONEDNN_")
    return {k: v for k, v in os.environ.items() if not k.startswith(dropped)}


def make_data(folder, sequence, count, evenkeel):
    """Documents of sequence - 1 letters: with the end mark exactly one sequence each."""
    draw = random.Random(sequence)
    files = []
    for i in range(count):
        path = folder / f"{i}.txt"
        path.write_text("".join(draw.choices("abcdefghijklmnopqrstuvwxyz      \n", k=sequence - 1)))
        files.append(str(path))
    subprocess.run([evenkeel, "data", "build", *files, "-o", str(folder / "data")], check=True,
                   capture_output=True)
    return files


def run_ours(args, kind, sequence, batch, recompute, folder):
    config = {
        "folder": str(folder / "run"),
        "model": {"layer_pattern": [KINDS[kind]], "tie_embeddings": True,
                  "final_norm_gain": kind == "softmax", **SHAPE},
        "data": {"train": str(folder / "data"), "sequence_length": sequence},
        "train": {"steps": 1 + args.steps, "global_batch_size": batch, "micro_batch_size": batch,
                  "schedule": "constant_then_decay", **TRAIN, "min_lr": TRAIN["lr"]},
        "runtime": {"threads": args.threads, "recompute": "layer" if recompute else "none"},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    subprocess.run(["rm", "-rf", config["folder"]], check=True)
    result = subprocess.run([args.evenkeel, "train", "--config", str(path)], env=clean_environment(),
                            capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"evenkeel failed:\n{result.stderr}")
    rows = [json.loads(line) for line in open(folder / "run" / "metrics.jsonl")]
    rows = [row for row in rows if row["event"] == "train"]
    seconds = [row["step_ms"] / 1e3 for row in rows[1:]]
    return {"seconds": seconds, "memory": rows[-1]["memory"], "losses": [row["loss"] for row in rows]}


def run_peer(args, kind, sequence, batch, recompute, mode, files):
    job = {"mode": mode, "threads": args.threads, "sequence": sequence, "chunk": args.chunk,
           "recompute": recompute, "files": files[:batch], "micro_batch": batch, "warmup": 1,
           "steps": args.steps, "train": TRAIN,
           "model": {"kind": "softmax" if kind == "softmax" else "linear", **SHAPE}}
    result = subprocess.run([args.python, str(HERE / "torch_peer.py")], input=json.dumps(job),
                            env=clean_environment(), capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"the peer failed:\n{result.stderr}")
    answer = json.loads(result.stdout.splitlines()[-1])
    return {"seconds": answer["seconds"][1:], "memory": answer["peak_bytes"] - answer["base_bytes"],
            "losses": answer["losses"], "torch": answer["torch"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--evenkeel", default=str(ROOT / "build/cpu/launch/evenkeel"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round, after one warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of ours, eager, compiled")
    parser.add_argument("--chunk", type=int, default=128, help="chunk of the peer's linear attention")
    parser.add_argument("--kind", choices=KINDS, help="only this model")
    parser.add_argument("--sequence", type=int, help="only this length")
    parser.add_argument("--json", help="also write the results to this file")
    args = parser.parse_args()
    results = []
    print(f"{'model':8} {'sequence':>12} {'evenkeel':>9} {'eager':>9} {'compiled':>9} {'ratio':>6}   "
          f"memory: {'evenkeel':>9} {'eager':>9} {'compiled':>9}")
    for kind in [args.kind] if args.kind else KINDS:
        for sequence, batch, recompute, peers in CASES:
            if args.sequence and sequence != args.sequence:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = pathlib.Path(name)
                files = make_data(folder, sequence, batch, args.evenkeel)
                runs = {"evenkeel": [], **{peer: [] for peer in peers}}
                for _ in range(args.rounds):
                    runs["evenkeel"].append(
                        run_ours(args, kind, sequence, batch, recompute, folder))
                    for peer in peers:
                        runs[peer].append(
                            run_peer(args, kind, sequence, batch, recompute, peer, files))
            speed = {who: sequence * batch / statistics.median(s for r in many for s in r["seconds"])
                     for who, many in runs.items()}
            memory = {who: max(r["memory"] for r in many) for who, many in runs.items()}
            results.append({"model": kind, "sequence": sequence, "batch": batch,
                            "tokens_per_s": speed, "memory": memory, "runs": runs})
            best = max((speed[peer] for peer in peers), default=0)
            cells = [f"{speed[who]:9.0f}" if who in speed else f"{'':9}"
                     for who in ("evenkeel", "eager", "compiled")]
            sizes = [f"{memory[who] / 2**20:5.0f} MiB" if who in memory else f"{'':9}"
                     for who in ("evenkeel", "eager", "compiled")]
            ratio = f"{speed['evenkeel'] / best:6.2f}" if best else f"{'':6}"
            print(f"{kind:8} {f'{sequence} x {batch}':>12} {' '.join(cells)} {ratio}           "
                  f"{' '.join(sizes)}", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
