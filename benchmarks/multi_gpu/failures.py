#!/usr/bin/env python3
"""A rank dies or stops in the middle of training: how soon the job ends, with which exit code and message.

    killed            mpirun sees it and ends the others
    killed, unseen    mpirun is told to let the others go on: they have to find out by themselves
    stopped           the rank hangs: the others find out by the time-out
    server killed     a dedicated attention server is killed, and mpirun ends the others
    server lost       the same, but mpirun is told to let the others go on: they do, with the servers
                      left, and what counts is how soon there is a next step

No process may be left in any of them.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from part import Part, end
import datasets

TIMEOUT_S = {"cpu": 5, "cuda": 10}  # of the runs; GPUs also need to begin within it
SLACK_S = 20  # beyond it, for aborting and ending
TIMED_OUT, PEERS_LOST = 6, 7


@dataclasses.dataclass
class Scenario:
    name: str
    signal: int
    mpirun: list = dataclasses.field(default_factory=list)
    settings: list = dataclasses.field(default_factory=list)
    finds_out: bool = True  # whether the ranks end the job, with a message that names the victim
    goes_on: bool = False  # whether the job outlives the victim


def scenarios(ranks):
    dp = [f"parallel.dp={ranks}", f"train.global_batch_size={ranks}"]
    server = [f"parallel.dp={ranks - 1}", f"train.global_batch_size={ranks - 1}",
              "parallel.attention=disaggregated", "parallel.attention_servers=1"]
    cases = [Scenario("killed", signal.SIGKILL, settings=dp, finds_out=False),
             Scenario("killed, unseen", signal.SIGKILL, ["--enable-recovery"], dp),
             Scenario("server killed", signal.SIGKILL, settings=server, finds_out=False),
             Scenario("stopped", signal.SIGSTOP, settings=dp)]
    if ranks > 2:
        servers = [f"parallel.dp={ranks - 2}", f"train.global_batch_size={ranks - 2}",
                   "parallel.attention=disaggregated", "parallel.attention_servers=2"]
        cases.insert(0, Scenario("server lost", signal.SIGKILL, ["--enable-recovery"], servers,
                                 goes_on=True))
    return cases


def timeout_of(part):
    return TIMEOUT_S[part.options.device]


def rank_processes(mpirun):
    """{rank: process id} of mpirun's children."""
    found = {}
    with open(f"/proc/{mpirun}/task/{mpirun}/children", encoding="utf-8") as file:
        children = [int(word) for word in file.read().split()]
    for child in children:
        try:
            with open(f"/proc/{child}/environ", encoding="utf-8", errors="replace") as file:
                rank = re.search(r"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)", file.read())
        except OSError:
            continue
        if rank:
            found[int(rank[1])] = child
    return found


def is_running(process):
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Job:
    """A training run that goes on until something happens to it."""

    def __init__(self, part, scenario):
        self.part, self.folder = part, os.path.join(part.folder, "run")
        shutil.rmtree(self.folder, ignore_errors=True)
        log = re.sub(r"\W+", "_", scenario.name)
        self.log = os.path.join(part.options.out, "logs", f"failures-{log}.log")
        command = part.mpirun(part.options.ranks, part.evenkeel, "train", "--config",
                              "configs/tiny_llama.yaml", more=scenario.mpirun)
        settings = [f"folder={self.folder}", f"data.train={part.folder}/documents",
                    "data.validation=", "train.eval_every=0", "data.sequence_length=512",
                    "train.steps=1000000", "checkpoint.every=-1", f"runtime.timeout_s={timeout_of(part)}",
                    f"runtime.device={part.options.device}", "runtime.threads=1",
                    f"runtime.ranks_per_gpu={part.options.ranks_per_gpu}", *scenario.settings]
        for setting in settings:
            command += ["--set", setting]
        self.file = open(self.log, "w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(command, stdout=self.file, stderr=subprocess.STDOUT,
                                        stdin=subprocess.DEVNULL)
        self.ranks = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.ranks.values():
            if is_running(process):
                os.kill(process, signal.SIGKILL)
        end(self.process)
        self.file.close()

    def metrics(self):
        try:
            with open(os.path.join(self.folder, "metrics.jsonl"), encoding="utf-8") as file:
                return file.read()
        except OSError:
            return ""

    def steps(self):
        return self.metrics().count("step_ms")

    def reaches(self, steps, seconds):
        wait_for(lambda: self.process.poll() is not None or self.steps() >= steps, seconds)
        return self.process.poll() is None and self.steps() >= steps

    def trains(self, seconds):
        """Waits for the third step."""
        if not self.reaches(3, seconds):
            return False
        self.ranks = rank_processes(self.process.pid)
        return len(self.ranks) == self.part.options.ranks

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()


def verdict(scenario, line):
    """What is wrong with how the job ended, or nothing."""
    if not line["ended"]:
        return "it goes on"
    if line["processes_left"]:
        return "processes are left"
    if line["exit_code"] == 0:
        return "exit code 0"
    if scenario.finds_out and line["exit_code"] not in (TIMED_OUT, PEERS_LOST):
        return f"exit code {line['exit_code']}, not {TIMED_OUT} or {PEERS_LOST}"
    if scenario.finds_out and not line["names_rank"]:
        return "no message names the rank"
    return ""


def outlive(part, scenario, job, victim):
    """The job goes on: seconds until the next step."""
    before = job.steps()
    begin = time.monotonic()
    os.kill(job.ranks[victim], scenario.signal)
    has_fault = wait_for(lambda: "lost of the attention servers" in job.metrics(), SLACK_S)
    goes_on = job.reaches(before + 2, SLACK_S)  # one may have been all but done
    line = {"ranks": part.options.ranks, "victim": victim, "ended": not goes_on,
            "seconds": round(time.monotonic() - begin, 1), "exit_code": "", "names_rank": has_fault,
            "message": re.search(r"lost of the attention[^\"]*|$", job.metrics())[0],
            "processes_left": False}
    print(f"{scenario.name}: {line['seconds']} s, {line['message'] or 'no message'}", flush=True)
    if not goes_on or not has_fault:
        return part.fail(scenario.name, "it does not go on", job.output(), **line)
    return part.record({"case": scenario.name, **line})


def try_scenario(part, scenario):
    patience = timeout_of(part) + SLACK_S
    with Job(part, scenario) as job:
        if not job.trains(min(60, part.left() - patience)):
            return part.fail(scenario.name, "it did not begin to train", job.output())
        victim = max(job.ranks)
        if scenario.goes_on:
            return outlive(part, scenario, job, victim)
        begin = time.monotonic()
        os.kill(job.ranks[victim], scenario.signal)
        ended = wait_for(lambda: job.process.poll() is not None, patience)
        seconds = time.monotonic() - begin
        gone = wait_for(lambda: not any(map(is_running, job.ranks.values())), 5)
        output = job.output()
        # With --enable-recovery mpirun itself ends with 0.
        code = job.process.poll()
        if aborted := re.search(r"with errorcode (\d+)", output):
            code = int(aborted[1])
        messages = re.findall(r"error: (.*(?:\n +rank.*)*)", output)
        line = {"ranks": part.options.ranks, "victim": victim, "ended": ended,
                "seconds": round(seconds, 1), "exit_code": code, "processes_left": not gone,
                "names_rank": any(re.search(rf"\brank {victim}\b", text) for text in messages),
                "message": messages[0] if messages else ""}
    wrong = verdict(scenario, line)
    print(f"{scenario.name}: {wrong or 'ok'}: {seconds:.1f} s, exit code {code}, "
          f"{line['message'] or 'no message'}", flush=True)
    if wrong:
        return part.fail(scenario.name, wrong, output, **line)
    return part.record({"case": scenario.name, **line})


def main():
    with Part("failures", __doc__) as part:
        datasets.write_samples(os.path.join(part.folder, "documents"), [[512]] * 64, 257)
        for scenario in scenarios(part.options.ranks):
            if not part.wanted(scenario.name):
                continue
            if part.left() < timeout_of(part) + SLACK_S + 10:
                part.leave_out(scenario.name)
                continue
            try_scenario(part, scenario)
        return part.exit_code()


if __name__ == "__main__":
    sys.exit(main())
