#!/usr/bin/env python3
"""Turns what the parts of benchmarks/multi_gpu.sh measured into tables and one JSON file.

    tables.py FOLDER [PART ...]    of FOLDER/PART.jsonl; also writes FOLDER/tables.md and multi_gpu.json
"""

import json
import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from gpu_tables import Table, grouped, ratio, text  # noqa: E402

PARTS = ("check", "comm", "layouts", "disaggregation", "linear", "failures")


def share(value):
    return "-" if value is None else f"{value:.1%}"


def label(tokens):
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)


def finished(lines):
    return [line for line in lines if "error" not in line and "left_out" not in line]


def notes_on(table, lines):
    """What failed and what was left out, below a table."""
    for line in lines:
        if "error" in line:
            table.notes.append(f"FAILED {line['case']}: {line['error']}")
    by_reason = grouped([line for line in lines if "left_out" in line], "left_out")
    for (reason,), group in by_reason.items():
        table.notes.append(f"{reason}: " + "; ".join(line["case"] for line in group))
    return table


def check_tables(lines):
    table = Table("Tests", ["test", "passed", "skipped", "layouts"])
    for line in finished(lines):
        table.add(line["case"], line["passed"], line["skipped"], line.get("layouts", "-"))
    return [notes_on(table, lines)]


def size_text(size):
    for unit, name in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if size >= 0.9 * unit:
            return f"{size / unit:.3g}{name}"
    return str(size)


def comm_tables(lines):
    tables = []
    for line in finished(lines):
        ops = [op for (op,) in grouped(line["points"], "op")]
        by_size = {}
        for op in ops:  # sizes are rounded to whole parts: the i-th of each belong together
            for i, point in enumerate(p for p in line["points"] if p["op"] == op):
                by_size.setdefault(i, {})[op] = point
        table = Table(f"Communicators, {line['ranks']} ranks, {line['library']} on {line['device']}: "
                      "busbw as nccl-tests counts it", ["size"])
        for op in ops:
            table.header += [f"{op} us", "GB/s"]
        table.header.append("one call / rounds")
        for points in by_size.values():
            cells = [size_text(points[ops[0]]["bytes"])]
            for op in ops:
                cells += [text(points[op]["seconds"] * 1e6, 1), text(points[op]["busbw_gb_s"], 2)]
            one, rounds = (points.get(op, {}).get("seconds")
                           for op in ("all-to-all", "all-to-all-rounds"))
            table.add(*cells, text(ratio(rounds, one), 2))
        wrong = sum(point["wrong"] for point in line["points"])
        table.notes.append(f"Wrong elements: {wrong}. Last column: speed of one grouped call of an "
                           "all-to-all over that of a call a round.")
        tables.append(table)
    if not tables or len(finished(lines)) < len(lines):
        tables.append(notes_on(Table("Communicators: not measured", ["ranks"]), lines))
    return tables


def step_cells(line):
    return [text(line["tokens_per_s"]), text(line["tokens_per_s"] / line["ranks"]),
            text(line["step_ms"], 1), text(line["mfu"], 3), share(line["exposed_share"]),
            text(line["memory_gib"], 1)]


STEP_HEADER = ["tokens/s", "a rank", "step ms", "MFU", "exposed", "GiB"]


def scaling_table(title, lines, base_of, column):
    table = Table(title, ["step and layout", "ranks", *STEP_HEADER, column])
    for line in lines:
        base = base_of(line)
        value = None
        if base:
            value = line["tokens_per_s"] / base["tokens_per_s"]
            if column == "efficiency":
                value /= line["ranks"]
        table.add(line["case"], line["ranks"], *step_cells(line), text(value, 2))
    return table


def layouts_tables(lines):
    good = [line for line in finished(lines) if "tables" in line]
    of = lambda name: [line for line in good if name in line["tables"]]
    steps = lambda line: (line["config"], line["sequence"], line["batch"])

    def same_step(line):
        return next((base for base in of("strong")
                     if base["ranks"] == 1 and steps(base) == steps(line)), None)

    def same_share(line):
        # One rank's step: of dp a part of the samples, of cp a part of each.
        grows_in_samples = "cp=" not in " ".join(line["settings"])
        sequence = line["sequence"] // (1 if grows_in_samples else line["ranks"])
        batch = line["batch"] // (line["ranks"] if grows_in_samples else 1)
        return next((base for base in of("weak") if base["ranks"] == 1 and
                     steps(base) == (line["config"], sequence, batch)), None)

    order = lambda line: (line["sequence"], line["batch"], line["ranks"])
    tables = [
        scaling_table("Strong scaling: the same step on more ranks (x: speed of one)",
                      sorted(of("strong"), key=order), same_step, "x"),
        scaling_table("Weak scaling: as many tokens a rank (efficiency: tokens/s a rank of those of "
                      "one; cp has more attention a token)", sorted(of("weak"), key=order),
                      same_share, "efficiency"),
        scaling_table("Llama 3 8B, or what stands for it at small sizes", of("large"),
                      lambda line: None, "x"),
    ]
    tables = [table for table in tables if table.rows]
    if not tables:
        tables = [Table("Layouts: nothing measured", ["layout"])]
    notes_on(tables[-1], lines)
    return tables


def disaggregation_tables(lines):
    table = Table("Disaggregated attention: mean step of the same documents, and as simulated (forward and "
                  "backward)", ["case", "layout", "step ms", "x (a)", "x (b)", "idle", "least to most", "planned", "sent MB",
                                "simulated ms", "idle", "as", "measured / simulated"], left=2)
    for _, group in grouped(finished(lines), "mix", "sequence").items():
        time_of = lambda kind: next((line["mean_step_ms"] for line in group
                                     if line["variant"].startswith(kind)), None)
        for line in group:
            ms = line["mean_step_ms"]
            sent = line.get("most_sent_bytes")
            table.add(line["case"], " ".join(line["layout"]).replace("attention=disaggregated", ""),
                      text(ms, 1), text(ratio(time_of("(a)"), ms), 2),
                      text(ratio(time_of("(b)"), ms), 2), share(line["exposed_share"]),
                      f"{share(line['least_exposed_share'])} to {share(line['most_exposed_share'])}",
                      text(line.get("attention_planned_imbalance"), 3),
                      text(sent and sent / 1e6, 1), text(line.get("predicted_ms"), 1),
                      share(line.get("predicted_idle")), line.get("predicted_layout", "-"),
                      text(ratio(ms, line.get("predicted_ms")), 2))
    if any(line.get("made_up") for line in lines):
        table.notes.append("Lengths are made up: LENGTHS gave no folder of lists.")
    table.notes.append("x: speed beside (a), (b) of the same mix and context; idle: of a rank, the mean and the range "
                       "over ranks; sent: by the rank that sends most.")
    return [notes_on(table, lines)]


def linear_tables(lines):
    table = Table("TransNormerLLM over sequence-parallel ranks",
                  ["sequences", "form", "ranks", *STEP_HEADER, "of one rank"], left=2)
    good = finished(lines)
    base = next((line for line in good if line["ranks"] == 1), None)
    for line in sorted(good, key=lambda line: (line["ranks"], line["form"], line["sequence"])):
        value = None
        if base:
            value = line["tokens_per_s"] / line["ranks"] / base["tokens_per_s"]
        table.add(line["case"].split(",")[0], line["form"], line["ranks"], *step_cells(line),
                  text(value, 2))
    if base:
        table.notes.append(f"Of one rank: tokens/s a rank of those of {base['case']}.")
    return [notes_on(table, lines)]


def failures_tables(lines):
    table = Table("Failures in the middle of training", ["what", "rank", "ended after s", "exit code",
                                                         "named", "processes left", "verdict"])
    for line in lines:
        if "exit_code" in line:
            table.add(line["case"], line["victim"], text(line["seconds"], 1), line["exit_code"],
                      "yes" if line["names_rank"] else "no",
                      "yes" if line["processes_left"] else "no", line.get("error", "ok"))
    table.notes.append("killed: by SIGKILL, mpirun ends the others; unseen: mpirun lets them go on; stopped: "
                       "SIGSTOP.")
    return [notes_on(table, lines)]


MAKERS = {"check": check_tables, "comm": comm_tables, "layouts": layouts_tables,
          "disaggregation": disaggregation_tables, "linear": linear_tables, "failures": failures_tables}


def main():
    folder, parts = sys.argv[1], sys.argv[2:] or PARTS
    tables, everything = [], {}
    if os.path.exists(machine := os.path.join(folder, "machine.txt")):
        with open(machine, encoding="utf-8") as file:
            everything["machine"] = file.read().splitlines()
    for part in parts:
        path = os.path.join(folder, f"{part}.jsonl")
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
        everything[part] = lines
        tables += MAKERS[part](lines)
    print("\n".join(table.plain() for table in tables), end="")
    with open(os.path.join(folder, "tables.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(table.markdown() for table in tables))
    with open(os.path.join(folder, "multi_gpu.json"), "w", encoding="utf-8") as file:
        json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
