#!/usr/bin/env python3
"""Step times that `evenkeel simulate` predicts for CPU ranks of this host beside those of real runs.

First the ranks are measured and described as a cluster, each term by itself, with as many processes at
work as the runs have ranks, so that what they share (memory, caches) is in the figures:

  core attention   the grid of `evenkeel bench attention`
  all else         seconds a token of each piece of a layer, of head and embedding, seconds a parameter of
                   the optimizer: medians over the spans of the timelines of one-rank runs (trace.steps)
                   on other samples than those that are predicted
  messages, copies `evenkeel bench comm`

Then the same steps are run and simulated (`evenkeel simulate --as-configured`). All measurements and runs
take turns, --rounds times; of a term, and of a step, the median counts. On a host that others use too,
--disturbed 0.05 repeats what others took more than 5 % of the cores' time from, a few times at most, and
tells what was left of it.

Examples:
  benchmarks/simulate_vs_measured.py --lengths pretrain.json
  benchmarks/simulate_vs_measured.py --lengths pretrain.json --contexts 4096 --rounds 1 --keep /tmp/c
"""

import argparse
import json
import math
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import datasets
import training_run
from disaggregation import SMALL, prepare

CALIBRATION_SEED = 2  # of the sample order; runs have the config's


def grid_lengths(longest):
    """Of documents as they come: kernels work in tiles, which lengths like 128 and 1,024 fill to the last
    row and others do not (up to a quarter slower), so the powers of two would tell the best case."""
    shortest, step = 16, 1.65
    count = math.ceil(math.log(longest / shortest) / math.log(step))
    return [round(shortest * (longest / shortest)**(i / count)) for i in range(count + 1)]


def cases(ranks):
    pooled, chunks = "parallel.attention=disaggregated", "parallel.virtual_stages=2"
    return [("data parallel", [f"parallel.dp={ranks}"]),
            ("cp, gather", [f"parallel.cp={ranks}"]),
            ("dp, ZeRO 1", [f"parallel.dp={ranks}", "parallel.zero=1"]),
            ("dp, disaggregated", [f"parallel.dp={ranks}", pooled]),
            ("dp, disaggregated, serial", [f"parallel.dp={ranks}", pooled, "parallel.ping_pong=serial"]),
            ("pp, 1F1B", [f"parallel.pp={ranks}"]),
            ("pp, disaggregated", [f"parallel.pp={ranks}", pooled]),
            ("pp, 2 virtual stages", [f"parallel.pp={ranks}", chunks]),
            ("pp, 2 virtual stages, disaggregated", [f"parallel.pp={ranks}", chunks, pooled])]


class Host:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.disturbed = []  # share of the cores' time that others took, of what is kept
        self.environment = dict(os.environ, OPENBLAS_NUM_THREADS="1")
        with open(options.lengths, encoding="utf-8") as file:
            lengths = json.load(file)
        self.steps = 1 + options.steps  # the first one warms up
        self.data = {}
        for context in options.contexts:
            tokens = (self.steps + 2) * options.batch * context
            documents = prepare(lengths, context, tokens, 1)
            documents[-1] -= sum(documents) - tokens  # every sample is full
            self.data[context] = os.path.join(folder, f"data-{context}")
            datasets.write(self.data[context], [n for n in documents if n > 0],
                           training_run.vocabulary_of(options.config))

    def settings(self, context, more, folder="run"):
        settings = training_run.settings_of(
            self.data[context], os.path.join(self.folder, folder), context, self.options.batch,
            self.steps, "cpu")
        if self.options.config == "configs/quickstart.yaml":
            settings += SMALL
        return settings + ["runtime.peak_gflops=1"] + more

    def undisturbed(self, measure):
        """Returns what `measure` does, of several tries the one that others disturbed least."""
        best = None
        for _ in range(self.options.tries):
            self.wait_for_quiet()
            busy, ours = busy_seconds(), children_seconds()
            begin = time.monotonic()
            result = measure()
            others = busy_seconds() - busy - (children_seconds() - ours)
            share = max(0.0, others) / (time.monotonic() - begin) / os.cpu_count()
            if best is None or share < best[0]:
                best = (share, result)
            if share <= self.options.disturbed:
                break
        self.disturbed.append(best[0])
        return best[1]

    def wait_for_quiet(self):
        deadline = time.monotonic() + self.options.patience
        while self.options.disturbed < 1 and time.monotonic() < deadline:
            busy = busy_seconds()
            time.sleep(0.25)
            if (busy_seconds() - busy) / 0.25 / os.cpu_count() <= self.options.disturbed:
                return

    def start(self, command):
        return command, subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                                         stderr=subprocess.STDOUT, env=self.environment)

    def finish(self, started):
        command, process = started
        output, _ = process.communicate(timeout=self.options.limit)
        if process.returncode != 0:
            sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{output[-2000:]}")

    def train(self, ranks, folder, context, more):
        shutil.rmtree(os.path.join(self.folder, folder), ignore_errors=True)
        return self.start(training_run.train(self.options.evenkeel, ranks, self.options.config,
                                             self.settings(context, more, folder)))

    def at_once(self, arguments_of):
        """Runs a command of one rank as often as there are ranks, all at the same time."""
        for started in [self.start(training_run.mpirun(1, self.options.evenkeel, *arguments_of(i)))
                        for i in range(self.options.ranks)]:
            self.finish(started)

    def measure_attention(self):
        """Returns a grid, point by point the mean of what all ranks measure side by side, a length of
        keys at a time."""
        shape = subprocess.run([self.options.evenkeel, "config", "check", self.options.config,
                                "--print"], check=True, capture_output=True, text=True).stdout
        number = lambda key: int(re.search(rf"^  {key}: (\d+)", shape, re.M)[1])
        heads = number("num_heads")
        size = number("head_dim") or number("hidden_size") // heads
        lengths = grid_lengths(max(self.options.contexts))
        part = lambda i: os.path.join(self.folder, f"attention-{i}.json")

        def measure(keys):
            queries = ",".join(str(n) for n in lengths if n <= keys)
            self.at_once(lambda i: ["bench", "attention", "--heads", str(heads), "--head-size",
                                    str(size), "--kv-heads", str(number("num_kv_heads") or heads),
                                    "--threads", "1", "--runs", str(self.options.bench_runs),
                                    "--q-lens", queries, "--kv-lens", str(keys), "--json", part(i)])
            files = []
            for i in range(self.options.ranks):
                with open(part(i), encoding="utf-8") as file:
                    files.append(json.load(file))
            return combined(files, statistics.mean)

        grids = [self.undisturbed(lambda: measure(keys)) for keys in lengths]
        grids[0]["points"] = sorted((point for grid in grids for point in grid["points"]),
                                    key=lambda point: (point["q_len"], point["kv_len"]))
        return grids[0]

    def measure_messages(self):
        path = os.path.join(self.folder, "messages.json")
        self.finish(self.start(training_run.mpirun(
            self.options.ranks, self.options.evenkeel, "bench", "comm", "--ops", "send-recv,copy",
            "--runs", "21", "--json", path)))
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def trace(self, context):
        """One-rank runs side by side; returns {term: [seconds]}, of a token where not said otherwise."""
        more = [f"seed={CALIBRATION_SEED}", f"trace.steps={self.options.steps}", "trace.first_step=2"]
        runs = [self.train(1, f"trace-{i}", context, more) for i in range(self.options.ranks)]
        terms = {}
        for i, started in enumerate(runs):
            self.finish(started)
            path = os.path.join(self.folder, f"trace-{i}", "trace", "rank-0.json")
            with open(path, encoding="utf-8") as file:
                events = json.load(file)
            add_terms(events["traceEvents"] if isinstance(events, dict) else events, context,
                      self.options.batch, terms)
        return terms

    def run(self, context, parallel):
        """Seconds of the steps after the first one."""
        self.finish(self.train(self.options.ranks, "run", context, parallel))
        rows = training_run.rows_of(os.path.join(self.folder, "run"))
        return [row["step_ms"] / 1e3 for row in rows[1:]]

    def predict(self, cluster, context, parallel):
        command = [self.options.evenkeel, "simulate", "--as-configured", "--model",
                   self.options.config, "--cluster", cluster, "-n", str(self.options.ranks),
                   "--steps", str(self.steps), "--json"]
        for setting in self.settings(context, parallel):
            command += ["--model-set", setting]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
        return json.loads(result.stdout)["steps"][1:]


def combined(grids, how):
    """The first of the grids, with the times of all put together."""
    for points in zip(*(grid["points"] for grid in grids)):
        for key in points[0]:
            if key.endswith("_s_per_pair"):
                points[0][key] = how([point[key] for point in points])
    return grids[0]


def busy_seconds():
    """Of all cores since the host started."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def children_seconds():
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def add_terms(events, context, samples, terms):
    """Takes a timeline apart. Micro-batches have one sample."""
    spans = sorted((event for event in events if event.get("ph") == "X"),
                   key=lambda event: (event["tid"], event["ts"], -event["dur"]))
    seconds = lambda event: event["dur"] * 1e-6
    add = lambda term, value: terms.setdefault(term, []).append(value)
    inside = lambda outer, name: sum(
        seconds(event) for event in spans
        if event["tid"] == outer["tid"] and event["name"].startswith(name) and
        outer["ts"] <= event["ts"] < outer["ts"] + outer["dur"] and event is not outer)
    for event in spans:
        layer = re.fullmatch(r"layer \d+ (forward|backward)", event["name"])
        if layer:
            phase, end = layer[1], " backward" if layer[1] == "backward" else ""
            before = inside(event, "pre-attention" + end)
            add(f"pre_{phase}_s", before / context)
            add(f"post_{phase}_s",
                (seconds(event) - before - inside(event, "core attention" + end)) / context)
        elif event["name"] == "head and loss":
            add("head_s", seconds(event) / context)
        elif event["name"] == "optimizer":
            add("optimizer", seconds(event))
        elif re.fullmatch(r"step \d+", event["name"]):
            # What is in no layer: the embedding, the norm of the gradients.
            within = [other for other in spans if other["tid"] != event["tid"] and
                      event["ts"] <= other["ts"] < event["ts"] + event["dur"]]
            known = sum(seconds(other) for other in within
                        if re.match(r"layer \d|head and loss|optimizer", other["name"]))
            work = [other for other in spans if other["tid"] == event["tid"] and
                    other["name"] == "forward and backward" and
                    event["ts"] <= other["ts"] < event["ts"] + event["dur"]]
            add("rest", (seconds(work[0]) - known) / samples)
            add("step_s", seconds(event) - seconds(work[0]))


def describe(host, terms, parameters, messages, path):
    """Writes the cluster. `terms`: of each context."""
    median = statistics.median
    of = lambda name: median([median(of_context[name]) for of_context in terms.values()])
    rates = {f"{piece}_{phase}_s": of(f"{piece}_{phase}_s")
             for piece in ("pre", "post") for phase in ("forward", "backward")}
    # Head and embedding are forward and backward in one: a third and two thirds of the work.
    rest = median([median(of_context["rest"]) / context for context, of_context in terms.items()])
    rates.update({"head_forward_s": of("head_s") / 3, "head_backward_s": of("head_s") * 2 / 3,
                  "embedding_forward_s": max(0.0, rest) / 3,
                  "embedding_backward_s": max(0.0, rest) * 2 / 3,
                  "parameter_s": of("optimizer") / parameters, "step_s": of("step_s")})
    with open(os.path.join(os.path.dirname(path), "attention.json"), encoding="utf-8") as file:
        points = json.load(file)["points"]
    longest = max(points, key=lambda point: (point["kv_len"], point["q_len"]))
    rates["attention_forward_s"] = longest["forward_s_per_pair"]
    rates["attention_backward_s"] = longest["backward_s_per_pair"]
    link = f"{{gb_s: {messages['gb_s']:.4g}, latency_us: {messages['latency_us']:.4g}}}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# {host.options.config}, softmax layers, on ranks of one thread, {host.options.ranks} at "
                   "work (benchmarks/simulate_vs_measured.py).\n"
                   "name: CPU ranks of this host\ngpus_per_node: 1024\nmemory_gb: 1000\n"
                   f"nvlink: {link}\nnetwork: {link}\n"
                   f"products: {{copy_gb_s: {messages['copy_gb_s']:.4g}}}\n"
                   "attention: {tile: 1, grid: attention.json}\nmeasured:\n" +
                   "".join(f"  {key}: {value:.6g}\n" for key, value in rates.items()))


def parameters_of(options):
    """Of the whole model, as the program counts them."""
    command = [options.evenkeel, "plan", "--config", options.config, "--ranks", "1", "--json"]
    settings = SMALL if options.config == "configs/quickstart.yaml" else []
    for setting in settings + ["data.validation="]:
        command += ["--set", setting]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return plan["parameters"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", required=True, help="JSON list of document lengths")
    parser.add_argument("--evenkeel", default="build/cpu/launch/evenkeel")
    parser.add_argument("--config", default="configs/quickstart.yaml",
                        help="of softmax layers; the quickstart's is run with them alone")
    parser.add_argument("--ranks", type=int, default=2, help="as many as the host has cores, at most")
    parser.add_argument("--contexts", type=lambda text: [int(n) for n in text.split(",")],
                        default=[4096, 16384], help="tokens of a sample: N,N,...")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=3, help="that are compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bench-runs", type=int, default=3, help="of a point of the attention grid")
    parser.add_argument("--limit", type=float, default=900, help="seconds a run may take")
    parser.add_argument("--disturbed", type=float, default=1,
                        help="share of the cores' time that others may take from a measurement")
    parser.add_argument("--tries", type=int, default=6, help="of a measurement, at most")
    parser.add_argument("--patience", type=float, default=10,
                        help="seconds to wait for others before a try, with --disturbed")
    parser.add_argument("--cases", default=".", help="regular expression of names")
    parser.add_argument("--grid", help="a grid that is there already, in place of measuring one")
    parser.add_argument("--keep", help="folder for the cluster, the grid and all figures")
    options = parser.parse_args()
    options.evenkeel = os.path.abspath(options.evenkeel)
    with tempfile.TemporaryDirectory(prefix="simulate_vs_measured_") as folder:
        keep = options.keep or folder
        os.makedirs(keep, exist_ok=True)
        host = Host(options, folder)
        grid = os.path.join(keep, "attention.json")
        wanted = [(context, name, parallel) for context in options.contexts
                  for name, parallel in cases(options.ranks) if re.search(options.cases, name)]
        terms = {context: {} for context in options.contexts}
        measured = {(context, name): [] for context, name, _ in wanted}
        grids, messages = [], []
        for _ in range(options.rounds):
            if options.grid is None:
                grids.append(host.measure_attention())
            messages.append(host.undisturbed(host.measure_messages))
            for context in options.contexts:
                for term, values in host.undisturbed(lambda: host.trace(context)).items():
                    terms[context].setdefault(term, []).extend(values)
                for at, name, parallel in wanted:
                    if at == context:
                        measured[(context, name)].append(
                            host.undisturbed(lambda: host.run(context, parallel)))
        link = {key: statistics.median(one[key] for one in messages)
                for key in ("gb_s", "latency_us", "copy_gb_s")}
        if options.grid is not None:
            with open(options.grid, encoding="utf-8") as file:
                grids = [json.load(file)]
        with open(grid, "w", encoding="utf-8") as file:
            json.dump(combined(grids, statistics.median), file, indent=1)
        cluster = os.path.join(keep, "cluster.yaml")
        describe(host, terms, parameters_of(options), link, cluster)
        with open(cluster, encoding="utf-8") as file:
            print(file.read())
        print(f"{options.ranks} ranks of one thread, {options.batch} samples a step, mean of "
              f"{options.steps} steps, medians of {options.rounds} rounds; others took "
              f"{100 * statistics.mean(host.disturbed):.0f} % of the cores' time on average, "
              f"{100 * max(host.disturbed):.0f} % at most")
        print(f"{'tokens':>7} {'case':36} {'predicted ms':>13} {'measured ms':>12} {'ratio':>6}")
        table = []
        for context, name, parallel in wanted:
            predicted = host.predict(cluster, context, parallel)
            steps = [statistics.median(times) for times in zip(*measured[(context, name)])]
            ours = statistics.mean(step["seconds"] for step in predicted)
            real = statistics.mean(steps)
            table.append({"context": context, "case": name, "predicted_s": ours, "measured_s": real,
                          "steps": predicted, "measured_steps_s": measured[(context, name)]})
            print(f"{context:7} {name:36} {ours * 1e3:13.1f} {real * 1e3:12.1f} {ours / real:6.3f}")
        if options.keep:
            with open(os.path.join(keep, "figures.json"), "w", encoding="utf-8") as file:
                json.dump({"options": vars(options), "terms": terms, "cases": table}, file, indent=1)


if __name__ == "__main__":
    main()
