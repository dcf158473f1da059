"""What the end-to-end tests share: a temporary folder with tiny data, and ways to start the program.

CTest sets EVENKEEL (the program) and MPIEXEC (the mpirun it was built with). By hand, with any build:

    EVENKEEL=build/cuda/launch/evenkeel python3 tests/e2e/device_test.py
"""

import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

EVENKEEL = os.path.abspath(os.environ["EVENKEEL"])
MPIEXEC = os.environ.get("MPIEXEC", "mpirun")
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
VOCABULARY = 257


def environment(**changes):
    """Returns this process's environment without what a batch system or mpirun left in it."""
    prefixes = ("OMPI_", "PMIX_", "PMI_", "SLURM_", "EVENKEEL_")
    result = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    result.pop("WORLD_SIZE", None)
    # How Open MPI is told on a host without ssh that it needs none.
    for key in ("OMPI_MCA_plm", "OMPI_MCA_plm_rsh_agent"):
        if key in os.environ:
            result[key] = os.environ[key]
    result |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return result | changes


def command(arguments, ranks):
    """Returns the command line that starts the program, under mpirun if `ranks` > 0."""
    program = [EVENKEEL, *map(str, arguments)]
    if ranks == 0:
        return program
    return [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *program]


def write_dataset(prefix, documents):
    """Writes documents (lists of tokens) as Megatron lays them out, apart from our own writer."""
    prefix = str(prefix)
    lengths = [len(document) for document in documents]
    offsets = [2 * sum(lengths[:i]) for i in range(len(lengths))]
    with open(prefix + ".bin", "wb") as file:
        for document in documents:
            file.write(struct.pack(f"<{len(document)}H", *document))
    with open(prefix + ".idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1))
        file.write(struct.pack(f"<{len(lengths)}i", *lengths))
        file.write(struct.pack(f"<{len(lengths)}q", *offsets))
        file.write(struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1)))


def random_documents(seed, lengths):
    """Documents with something to learn: each walks along the alphabet in steps of its own."""
    draw = random.Random(seed)
    documents = []
    for length in lengths:
        start, stride = draw.randrange(26), draw.choice((1, 2, 3))
        documents.append([97 + (start + stride * i) % 26 for i in range(length - 1)] + [256])
    return documents


def to_yaml(tree, indent=""):
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", to_yaml(value, indent + "  ")]
        else:
            text = f"[{', '.join(value)}]" if isinstance(value, list) else value
            if isinstance(value, bool):
                text = str(value).lower()
            lines.append(f"{indent}{key}: {text}")
    return "\n".join(lines)


def metrics(run, event):
    """Returns the lines of metrics.jsonl that no later resume marker supersedes, in order."""
    rows = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a killed process may leave half a line
        if row["event"] == "resume":
            rows = [r for r in rows if 0 < row["step"] >= r["step"]]
        elif row["event"] == event:
            rows.append(row)
    return rows


def checkpoint_folder(run, step):
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(run):
    return sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-????????"))


def flip_bit(path, position):
    """Flips one bit; a negative position counts from the end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def children_of(pid):
    try:
        return [int(word) for word in
                pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_running(pid):
    """Whether a process exists and is no zombie."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"


class EndToEndTest(unittest.TestCase):
    """A test with a folder of its own, and a model and data so small that a step takes a moment."""

    # Long enough for a machine that does other work too; a hang is a failure.
    patience_s = 60

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="evenkeel_e2e_"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.processes = []
        self.addCleanup(self.kill_all)
        draw = random.Random(7)
        # From one target to several samples long.
        lengths = [2, 3, 17, 64, 65, 129] + [draw.randrange(2, 200) for _ in range(60)]
        write_dataset(self.folder / "train", random_documents(1, lengths))
        write_dataset(self.folder / "valid", random_documents(2, [5, 40, 100, 131]))

    def kill(self, process):
        """Ends a process and those below it; returns what they had printed."""
        below, todo = [], [process.pid]
        while todo:
            below.append(todo.pop())
            todo += children_of(below[-1])
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return process.communicate()[0]

    def kill_all(self):
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)
            if not process.stdout.closed:
                process.communicate()

    def config(self, run="run", **changes):
        """Writes a config for run folder `run`; `changes` are dotted keys with __ for the dot.

        Returns the config's path and the run folder's.
        """
        run = self.folder / run
        tree = {
            "folder": run,
            "model": {"layer_pattern": ["lightning", "softmax"], "vocab_size": VOCABULARY,
                      "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2},
            "data": {"train": self.folder / "train", "validation": self.folder / "valid",
                     "sequence_length": 64},
            "train": {"steps": 20, "global_batch_size": 4, "lr": 0.01, "warmup_steps": 5},
            "checkpoint": {},
            "parallel": {},
            # A peak of its own spares the measurement at the start.
            "runtime": {"dtype": "float64", "threads": 1, "peak_gflops": 1, "timeout_s": 30},
        }
        for key, value in changes.items():
            *sections, name = key.split("__")
            place = tree
            for section in sections:
                place = place[section]
            place[name] = value
        path = self.folder / f"{run.name}.yaml"
        path.write_text(to_yaml({k: v for k, v in tree.items() if v != {}}) + "\n")
        return path, run

    def start(self, *arguments, ranks=0, env=None):
        """Starts the program and returns at once; the process is gone when the test ends."""
        process = subprocess.Popen(command(arguments, ranks), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   errors="replace", cwd=self.folder, env=environment(**env or {}))
        self.processes.append(process)
        return process

    def finish(self, process, code=0):
        """Waits for a process, checks its exit code, and returns all it printed."""
        try:
            output, _ = process.communicate(timeout=self.patience_s)
        except subprocess.TimeoutExpired:
            self.fail(f"does not end: {process.args}\n{self.kill(process)}")
        self.assertEqual(process.returncode, code, f"{process.args}\n{output}")
        return output

    def run_program(self, *arguments, ranks=0, code=0, env=None):
        """Runs the program to its end, checks the exit code, and returns all it printed."""
        return self.finish(self.start(*arguments, ranks=ranks, env=env), code)

    def train(self, config, *overrides, ranks=2, code=0, env=None):
        sets = [word for override in overrides for word in ("--set", override)]
        return self.run_program("train", "--config", config, *sets, ranks=ranks, code=code, env=env)

    def start_training(self, config, ranks=2):
        return self.start("train", "--config", config, ranks=ranks)

    def wait_until(self, condition, process=None):
        """Polls until `condition` holds; fails if the process ends before."""
        deadline = time.monotonic() + self.patience_s
        while not condition():
            if process is not None and process.poll() is not None:
                self.fail(f"ended with {process.returncode}:\n{process.communicate()[0]}")
            if time.monotonic() > deadline:
                self.fail("waited too long" + (f":\n{self.kill(process)}" if process else ""))
            time.sleep(0.002)

    def wait_for_step(self, run, step, process):
        def reached():
            path = run / "metrics.jsonl"
            rows = metrics(run, "train") if path.exists() else []
            return bool(rows) and rows[-1]["step"] >= step
        self.wait_until(reached, process)

    def assert_same_run(self, run, reference, steps):
        """Every step's loss and gradient norm, and the last weights and moments: bit by bit."""
        def values(folder):
            return [(r["step"], r["loss"], r["grad_norm"]) for r in metrics(folder, "train")]
        self.assertEqual([v[0] for v in values(run)], list(range(1, steps + 1)))
        self.assertEqual(values(run), values(reference))
        for name in ("model.safetensors", "optimizer.safetensors"):
            self.assertEqual((checkpoint_folder(run, steps) / name).read_bytes(),
                             (checkpoint_folder(reference, steps) / name).read_bytes(), name)
