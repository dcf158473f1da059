#!/usr/bin/env python3
"""Bandwidths of the communicators in nccl-tests' columns, on all ranks and on fewer (`evenkeel bench comm`)."""

import json
import os
import sys

from part import Part, first_error


def measure(part, ranks):
    name = f"{ranks} ranks"
    if not part.wanted(name):
        return
    if part.left() < 5:
        part.leave_out(name, ranks=ranks)
        return
    path = os.path.join(part.options.out, f"comm-{ranks}.json")
    full = part.options.size == "full"
    command = part.mpirun(ranks, part.evenkeel, "bench", "comm", "--device", part.options.device,
                          "--ranks-per-gpu", str(part.options.ranks_per_gpu), "--json", path,
                          "--max-bytes", "1GB" if full else "4MB", "--factor",
                          "16" if part.options.quick or not full else "4", "--runs",
                          "5" if full else "2")
    code, output = part.run(command, part.left(), f"comm-{ranks}")
    print(output[output.index("\n") + 1:], flush=True)
    if code is None:
        part.leave_out(name, "the time was over in the middle of it", ranks=ranks)
    elif code != 0:
        part.fail(name, f"exit code {code}", first_error(output), ranks=ranks)
    else:
        with open(path, encoding="utf-8") as file:
            measured = json.load(file)
        part.record({"case": name, "ranks": ranks, "device": measured["device"],
                     "library": measured["library"], "points": measured["points"]})


def main():
    with Part("comm", __doc__) as part:
        n = part.options.ranks
        for ranks in [n, *(m for m in (2, 4, 8) if m < n)]:
            measure(part, ranks)
        return part.exit_code()


if __name__ == "__main__":
    sys.exit(main())
