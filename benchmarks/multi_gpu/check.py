#!/usr/bin/env python3
"""Tests of what ranks do together: every NCCL call against MPI, time-outs, gradients of drawn layouts."""

import re
import sys

from part import Part


def cases(part):
    """(program, folder, ranks, seconds, environment)."""
    n = part.options.ranks
    sizes = [n] if part.options.quick else [n, *(m for m in (2, 4, 8) if m < n)]
    if part.options.device == "cpu":
        return [("mpi_comm_test", "tests/mpi/comm", m, 60, {}) for m in sizes]
    draws = 1 if part.options.quick else 3 if part.left() < 150 else 12
    return [*(("nccl_comm_test", "tests/gpu/comm", m, 60, {}) for m in sizes),
            ("nccl_timeout_test", "tests/gpu/comm", n, 60, {}),
            ("layouts_cuda_test", "tests/gpu/layouts", n, 300, {"EVENKEEL_LAYOUT_DRAWS": str(draws)})]


def run(part, program, folder, ranks, seconds, environment):
    name = f"{program}, {ranks} ranks"
    if not part.wanted(name):
        return
    left = part.left()
    if left < 5:
        part.leave_out(name)
        return
    command = part.mpirun(ranks, part.program(program, folder), "--gtest_brief=1")
    code, output = part.run(command, min(seconds, left), name, {"GTEST_COLOR": "no", **environment})
    count = lambda word: max(map(int, re.findall(rf"\[ *{word} *\] (\d+) test", output)), default=0)
    line = {"ranks": ranks, "passed": count("PASSED"), "skipped": count("SKIPPED")}
    if program == "layouts_cuda_test":
        line["layouts"] = len(re.findall(r"^  error .* one GPU ", output, re.M))
    if code is None and left < seconds and "Failure" not in output:
        done = f", behind {line['layouts']} layouts without fault" if "layouts" in line else ""
        part.leave_out(name, f"the time was over in the middle of it{done}", **line)
    elif code != 0:
        part.fail(name, "out of time" if code is None else f"exit code {code}", output[-3000:], **line)
    elif line["passed"] == 0:
        part.fail(name, "no test ran", output, **line)  # one that skips everything has tested nothing
    else:
        print(f"{name}: {line['passed']} tests ok", flush=True)
        part.record({"case": name, **line})


def main():
    with Part("check", __doc__) as part:
        for case in cases(part):
            run(part, *case)
        return part.exit_code()


if __name__ == "__main__":
    sys.exit(main())
