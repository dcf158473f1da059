"""What the parts of benchmarks/multi_gpu.sh share: their options, clock and lines of results, and a
training run from its settings to its figures.

A part works through a list of cases in the order of their importance until its time is over. Each case
leaves one line in OUT/PART.jsonl: its figures, or what went wrong, or that it was left out.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

# What other benchmarks use, too.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import datasets  # noqa: E402
import training_run  # noqa: E402

OUT_OF_MEMORY = 8  # exit code of a run that does not fit, told before it starts
# What a first case may need, seconds.
GUESS = {"full": 20, "small": 4}


@dataclasses.dataclass
class Training:
    """A run of `evenkeel train`."""
    name: str
    ranks: int
    config: str
    sequence: int
    batch: int
    settings: list = dataclasses.field(default_factory=list)
    samples: list = None  # lists of document lengths; without it every sample is one document
    steps: int = 3        # timed
    limit: float = 150    # seconds
    quick: bool = False   # also in a quick run
    facts: dict = dataclasses.field(default_factory=dict)  # for the tables


class Part:
    def __init__(self, name, description, add_options=None):
        parser = argparse.ArgumentParser(description=description,
                                         formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
        parser.add_argument("--build", help="build folder (build/DEVICE)")
        parser.add_argument("--bin", help="folder that has all programs, instead")
        parser.add_argument("--ranks", type=int, default=2, help="GPUs, or ranks that share them")
        parser.add_argument("--ranks-per-gpu", type=int, default=1)
        parser.add_argument("--size", choices=("full", "small"), default="full")
        parser.add_argument("--quick", action="store_true", help="the few most important cases")
        parser.add_argument("--seconds", type=float, default=540, help="for all cases")
        parser.add_argument("--cases", default=".", help="regular expression of names")
        parser.add_argument("--resume", action="store_true", help="keep results, do what is missing")
        parser.add_argument("--out", required=True, help="folder of results")
        parser.add_argument("--set", action="append", default=[], help="more settings of every run")
        if add_options:
            add_options(parser)
        self.options = parser.parse_args()
        self.name = name
        self.begin = time.monotonic()
        self.failed = False
        self.peak_gflops = None
        self.took = {}  # seconds of the last case, by config
        self.data = None  # what the data set in the folder is made of
        os.makedirs(os.path.join(self.options.out, "logs"), exist_ok=True)
        self.path = os.path.join(self.options.out, f"{name}.jsonl")
        self.done = self._read_done() if self.options.resume else []
        self._write_all(self.done)
        # A `timeout` that ends this program lets it end what it has started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
        self.folder = tempfile.mkdtemp(prefix=f"multi_gpu_{name}_")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_done(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
        return [line for line in lines if "error" not in line and "left_out" not in line]

    def _write_all(self, lines):
        with open(self.path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    # Time and results.

    def left(self):
        return self.begin + self.options.seconds - time.monotonic()

    def wanted(self, name, quick=True):
        return (re.search(self.options.cases, name) and (quick or not self.options.quick) and
                all(line["case"] != name for line in self.done))

    def record(self, line):
        line = {"part": self.name, **line}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def fail(self, case, error, why="", **more):
        self.failed = True
        print(f"{case}: FAILED: {error}\n{why}", flush=True)
        return self.record({"case": case, "error": error, "why": why[-1500:], **more})

    def leave_out(self, case, why="no time left", **more):
        print(f"{case}: left out: {why}", flush=True)
        return self.record({"case": case, "left_out": why, **more})

    def exit_code(self):
        return 1 if self.failed else 0

    # Programs.

    def program(self, name, folder):
        if self.options.bin:
            return os.path.join(self.options.bin, name)
        build = self.options.build or f"build/{self.options.device}"
        return os.path.join(build, folder, name)

    @property
    def evenkeel(self):
        return self.program("evenkeel", "launch")

    def mpirun(self, ranks, *command, more=()):
        return training_run.mpirun(ranks, *command, more=more)

    def run(self, command, seconds, log, environment=None):
        """Runs a command; returns its exit code, or None if its time was over, and what it printed."""
        path = os.path.join(self.options.out, "logs", re.sub(r"[^\w.-]+", "_", log) + ".log")
        with open(path, "w+", encoding="utf-8", errors="replace") as file:
            print("$", *command, file=file, flush=True)
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL,
                                       env={**os.environ, **(environment or {})})
            try:
                code = process.wait(timeout=max(1, seconds))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end(process)
            file.seek(0)
            return code, file.read()

    # Training.

    def settings_of(self, case, prefix, folder):
        settings = training_run.settings_of(prefix, folder, case.sequence, case.batch, 1 + case.steps,
                                            self.options.device, self.options.ranks_per_gpu)
        settings += [*case.settings, f"seed={datasets.SEED}", "runtime.timeout_s=60"]
        if self.options.device == "cuda" and self.peak_gflops:
            settings.append(f"runtime.peak_gflops={self.peak_gflops}")
        return settings + self.options.set

    def train(self, case):
        """Runs a case and records it, unless it is not wanted. Returns its line, or None."""
        if not self.wanted(case.name, case.quick):
            return None
        needs = self.took.get(case.config, GUESS[self.options.size])
        facts = {"ranks": case.ranks, "config": os.path.basename(case.config),
                 "sequence": case.sequence, "batch": case.batch, "settings": case.settings,
                 **case.facts}
        if self.left() < 0.8 * needs:
            return self.leave_out(case.name, **facts)
        begin = time.monotonic()
        samples = case.samples or [[case.sequence]] * (case.batch * (1 + case.steps))
        prefix = os.path.join(self.folder, "documents")
        vocabulary = training_run.vocabulary_of(case.config, case.settings)
        if self.data != (samples, vocabulary):
            self.data = None
            datasets.write_samples(prefix, samples, vocabulary)
            self.data = (samples, vocabulary)
        folder = os.path.join(self.folder, "run")
        shutil.rmtree(folder, ignore_errors=True)
        command = training_run.train(self.evenkeel, case.ranks, case.config,
                                     self.settings_of(case, prefix, folder))
        limit = min(case.limit, self.left())
        code, output = self.run(command, limit, f"{self.name}-{case.name}")
        seconds = time.monotonic() - begin
        self.took[case.config] = seconds
        if code is None and limit < case.limit:
            return self.leave_out(case.name, "the time was over in the middle of it", **facts)
        if code == OUT_OF_MEMORY and not os.path.exists(os.path.join(folder, "metrics.jsonl")):
            return self.leave_out(case.name, "does not fit", why=first_error(output), **facts)
        if code != 0:
            return self.fail(case.name, "out of time" if code is None else f"exit code {code}",
                             first_error(output), **facts)
        if found := re.search(r"peak of products (\d+) TFLOP/s", output):
            self.peak_gflops = self.peak_gflops or 1000 * int(found[1])
        line = {"case": case.name, **facts, **figures_of(folder, case), "seconds": round(seconds, 1)}
        wrong = wrong_batches(samples, case, line)
        if wrong:
            return self.fail(case.name, wrong, **facts)
        print(f"{case.name}: {line['tokens_per_s'] / case.ranks:,.0f} tokens/s a rank, step "
              f"{line['step_ms']:,.1f} ms, exposed {line['exposed_share']:.1%} "
              f"({seconds:.0f} s in all)", flush=True)
        return self.record(line)


def end(process):
    """Ends mpirun if it runs; it ends its ranks, or, if it must be killed, the kernel does."""
    for way in (process.terminate, process.kill):
        if process.poll() is not None:
            return
        way()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass


def first_error(output):
    """What the program said, or how its output ends."""
    found = re.search(r"error: (.*(?:\n +.*)*)", output)
    return found[1] if found else output[-1500:]


def figures_of(folder, case):
    """What metrics.jsonl says of the timed steps: medians, and of some the steps themselves."""
    rows = training_run.rows_of(folder)
    timed = rows[1:]
    median = lambda key: statistics.median(row[key] for row in timed)
    mean = lambda key: statistics.mean(row[key] for row in timed) if key in timed[0] else None
    figures = {"tokens_per_s": median("tokens_per_s"), "step_ms": median("step_ms"),
               "mean_step_ms": mean("step_ms"), "step_ms_of": [row["step_ms"] for row in timed],
               "mfu": median("mfu"), "exposed_share": mean("exposed_comm_share"),
               "least_exposed_share": mean("least_exposed_share"),
               "most_exposed_share": mean("most_exposed_share"),
               "memory_gib": max(row["memory"] for row in rows) / 2**30,
               "sent_bytes": mean("sent_bytes"), "first_loss": rows[0]["loss"],
               "loss": rows[-1]["loss"], "valid_tokens": [row["valid_tokens"] for row in rows]}
    for key in ("attention_planned_imbalance", "attention_imbalance", "most_sent_bytes",
                "planning_ms", "planning_wait_ms"):
        if key in timed[0]:
            figures[key] = mean(key)
    return figures


def wrong_batches(samples, case, line):
    """A step has a target for every token but the last of each document: was it these documents?"""
    for step, valid in enumerate(line["valid_tokens"]):
        batch = samples[step * case.batch:(step + 1) * case.batch]
        want = sum(length - 1 for sample in batch for length in sample)
        if valid != want:
            return f"step {step + 1} had {valid} targets, not {want}: other documents than planned"
    return None
