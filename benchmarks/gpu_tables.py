#!/usr/bin/env python3
"""Turns what benchmarks/gpu.sh measured into tables, aligned for a terminal and as Markdown.

    gpu_tables.py show [--markdown FILE] LINES.jsonl ...    tables of these lines
    gpu_tables.py read SECTION TABLE PEER < output           a program's columns as JSON lines
    gpu_tables.py step PRESET FILE                           what `evenkeel bench step` wrote as such a line

Ratios are ours over the peer's, so more than 1 is better. Where a case ran several times, medians.
TFLOP/s of both sides of a training step count our formula (scheduler/flops.h: 6 a matmul parameter and
token, 12 D H a causal pair): the peer's are ours times the ratio of tokens per second.
"""
import argparse
import collections
import json
import re
import statistics
import sys

OURS = "evenkeel"


def median(values):
    return statistics.median(values) if values else None


def text(value, digits=0):
    """A number or what stands for one that is missing."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.{digits}f}"


def ratio(ours, theirs):
    return ours / theirs if ours and theirs else None


class Table:
    """A title, a header and rows of strings; the first `left` columns are aligned to the left."""

    def __init__(self, title, header, left=1, notes=()):
        self.title, self.header, self.left, self.rows, self.notes = title, header, left, [], list(notes)

    def add(self, *cells):
        assert len(cells) == len(self.header), (self.title, cells)
        self.rows.append([str(cell) for cell in cells])

    def plain(self):
        rows = [self.header] + self.rows
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]
        lines = [self.title]
        for row in rows:
            cells = [cell.ljust(width) if i < self.left else cell.rjust(width)
                     for i, (cell, width) in enumerate(zip(row, widths))]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join(lines + [f"  {note}" for note in self.notes]) + "\n"

    def markdown(self):
        marks = ["---"] * self.left + ["---:"] * (len(self.header) - self.left)
        lines = [f"{self.title}:", ""]
        lines += ["| " + " | ".join(row) + " |" for row in [self.header, marks] + self.rows]
        return "\n".join(lines + (["", *self.notes] if self.notes else [])) + "\n"


def grouped(lines, *keys):
    """Lines by the values of these keys, in the order of their first appearance."""
    groups = collections.OrderedDict()
    for line in lines:
        groups.setdefault(tuple(line.get(key) for key in keys), []).append(line)
    return groups


def runs_table(section, lines):
    title = {"tests": "Tests", "sanitize": "compute-sanitizer"}[section]
    table = Table(title, ["test", "with", "result", "tests", "skipped", "s"], left=3)
    for line in lines:
        table.add(line["test"], line["with"], line["result"], text(line.get("passed")),
                  text(line.get("skipped")), text(line["seconds"]))
    return [table]


def steps_tables(lines):
    title = "Training steps, bf16 with float32 master weights, AdamW (GiB: peak of the program's memory)"
    header = ["model", "tokens", "recompute", "tokens/s", "TFLOP/s", "MFU", "GiB", "peer", "tokens/s",
              "TFLOP/s", "GiB", "ratio"]
    table = Table(title, header, left=3)
    cases = grouped(lines, "preset", "seq", "batch", "recompute")
    for (preset, seq, batch, recompute), runs in cases.items():
        def middle(of, key):
            return median([run[key] for run in of if key in run])

        ours = [run for run in runs if run["peer"] == OURS and run.get("products") != "fp8"]
        clipping = [run for run in runs if "clipping" in run["peer"]]
        theirs = [run for run in runs if run["peer"] != OURS and run not in clipping]
        in_fp8 = [run for run in runs if run.get("products") == "fp8"]
        rate, their_rate = (middle(side, "tokens_per_s") for side in (ours, theirs))
        flops, share = middle(ours, "model_tflops"), ratio(rate, their_rate)
        cells = [preset, f"{seq} x {batch}", recompute]
        failed = next((run["error"] for run in ours if "error" in run), None)
        cells += [text(rate or failed), text(flops), text(middle(ours, "mfu"), 3),
                  text(middle(ours, "peak_GiB"), 1)]
        failed = next((run["error"] for run in theirs if "error" in run), None)
        cells += [theirs[0]["peer"] if theirs else "-", text(their_rate or failed),
                  text(flops / share if flops and share else None), text(middle(theirs, "peak_GiB"), 1),
                  text(share, 2)]
        if ours or theirs:
            table.add(*cells)
        if in_fp8:
            fp8_rate = middle(in_fp8, "tokens_per_s")
            failed = next((run["error"] for run in in_fp8 if "error" in run), None)
            table.add(preset, f"{seq} x {batch}", f"{recompute}, fp8", text(fp8_rate or failed),
                      text(middle(in_fp8, "model_tflops")), text(middle(in_fp8, "mfu"), 3),
                      text(middle(in_fp8, "peak_GiB"), 1), "ours, bf16", text(rate), text(flops),
                      text(middle(ours, "peak_GiB"), 1), text(ratio(fp8_rate, rate), 2))
        if clipping and ours:
            clipped_rate = middle(clipping, "tokens_per_s")
            table.notes.append(f"{preset} {seq} x {batch}, the peer clipping the gradient as we do: "
                               f"{text(clipped_rate)} tokens/s, ratio {text(ratio(rate, clipped_rate), 3)}.")
        if len(ours) > 1 and share:
            each = "; ".join(name + " " + ", ".join(text(run.get("tokens_per_s")) for run in side)
                             for name, side in (("ours", ours), ("peer", theirs)))
            table.notes.append(f"{preset} {seq} x {batch} in turn: {each} tokens/s; medians {share:.3f}.")
    return [table]


def kernels_tables(lines):
    tables = []
    units = {"softmax": "TFLOP/s", "rested": "TFLOP/s", "sustained": "TFLOP/s", "tasks": "TFLOP/s",
             "lightning": "million tokens/s"}
    titles = {"softmax": "Softmax attention of whole documents",
              "rested": "Softmax attention, a launch on a GPU that has rested",
              "sustained": "Softmax attention, launches one after the other for a second",
              "tasks": "Softmax attention of fused shards", "lightning": "Lightning attention"}
    for (name,), rows in grouped([line for line in lines if line["table"] in units], "table").items():
        peers = [peer for (peer,) in grouped(rows, "peer") if peer != OURS]
        table = Table(f"{titles[name]}, {units[name]} (ratio: to the fastest peer)", [], left=2)
        table.header = ["case", "heads x size", "forward", *peers, "ratio", "backward", *peers, "ratio"]
        for (case, heads, kv, dim), runs in grouped(rows, "case", "heads", "kv", "dim").items():
            cells = [case, f"{heads}/{kv} x {dim}" if kv else f"{heads} x {dim}"]
            for way in ("forward", "backward"):
                rate = {run["peer"]: run[way] or None for run in runs}
                best = max((rate[peer] for peer in peers if rate.get(peer)), default=None)
                cells += [text(rate.get(who), 1) for who in (OURS, *peers)]
                cells.append(text(ratio(rate.get(OURS), best), 2))
            table.add(*cells)
        tables.append(table)
    steps = [line for line in lines if line["table"] == "decode"]
    if steps:
        table = Table("A step of decoding, lightning attention", [
            "sequences", "heads x size", "us", "GB/s", "of a large copy", "a copy, us", "chunked, us"], left=2)
        for line in steps:
            table.add(line["case"], f"{line['heads']} x {line['dim']}", text(line["us"], 1),
                      text(line["gb_per_s"]), f"{line['share']:.0f} %", text(line["copy_us"], 1),
                      text(line["chunked_us"], 1))
        tables.append(table)
    errors = [line for line in lines if line["table"] == "error"]
    if errors:
        table = Table("Attention: relative errors against float64",
                      ["case", "tensor", "ours", "PyTorch", "ratio"], left=2)
        for line in errors:
            table.add(line["case"], line["tensor"], f"{line['ours']:.2e}", f"{line['theirs']:.2e}",
                      text(ratio(line["ours"], line["theirs"]), 2))
        tables.append(table)
    return tables


def ops_tables(lines):
    bandwidth = Table("Ops, beside a plain copy", ["op", "us", "GB/s", "of the copy"])
    products = Table("Products by cuBLASLt", ["product", "us", "TFLOP/s"])
    for line in lines:
        if "tflops" in line:
            products.add(line["op"], text(line["us"], 1), text(line["tflops"]))
        else:
            bandwidth.add(line["op"], text(line["us"], 1), text(line["gb_per_s"]), f"{line['share']:.0f} %")
    return [table for table in (bandwidth, products) if table.rows]


def error_tables(lines):
    table = Table("Whole models in bf16: relative errors against float64",
                  ["model", "of", "ours", "PyTorch", "ratio", "worst: ours", "PyTorch's"], left=2)
    for line in lines:
        ours, theirs = line["ours"], line["pytorch"]
        for key, label in (("loss", "loss"), ("gradients", "all gradients"), ("worst", "worst gradient")):
            names = (ours["worst_parameter"], theirs["worst_parameter"]) if key == "worst" else ("", "")
            table.add(line["model"], label, f"{ours[key]:.2e}", f"{theirs[key]:.2e}",
                      text(ratio(ours[key], theirs[key]), 2), *names)
    return [table]


def curve_tables(lines):
    table = Table("The quickstart model trained on both", ["device", "steps", "first loss", "last loss",
                                                            "mean of last", "held out", "tokens/s"])
    for line in lines:
        table.add(line["device"], line["steps"], text(line["first_loss"], 4),
                  text(line["last_loss"], 4), text(line["mean_of_last"], 4),
                  text(line.get("held_out_loss"), 4), text(line["tokens_per_s"]))
    if len(lines) > 1:
        a, b = (line["mean_of_last"] for line in lines[:2])
        table.notes.append(f"Means of the last {lines[0]['averaged']} losses differ by {abs(a - b) / b:.2%}.")
    return [table]


TABLES = {"tests": lambda lines: runs_table("tests", lines), "kernels": kernels_tables, "ops": ops_tables,
          "steps": steps_tables, "error": error_tables, "curve": curve_tables,
          "sanitize": lambda lines: runs_table("sanitize", lines)}


def show(args):
    lines = []
    for path in args.lines:
        with open(path) as file:
            lines += [json.loads(line) for line in file if line.strip()]
    by_section = grouped(lines, "section")
    tables = [table for section, make in TABLES.items() if (section,) in by_section
              for table in make(by_section[(section,)])]
    print("\n".join(table.plain() for table in tables), end="")
    if args.markdown:
        with open(args.markdown, "w") as file:
            file.write("\n".join(table.markdown() for table in tables))


def columns(rows):
    """Dicts of the rows under a header that begins with #. Only the column `case` may have spaces in
    it, so it takes what the columns before and after it leave. Of equal names the last counts, so a
    rate goes by the name of the time before it."""
    names, before = [], 0
    for row in rows:
        cells = row.split()
        if row.startswith("#"):
            names = re.findall(r"(?:fwd|bwd) ms|plan us|[^\s#]+", row)
            for i in range(1, len(names)):
                if names[i - 1] in ("fwd ms", "bwd ms"):
                    names[i] = names[i - 1][:3]
            before = names.index("case")
        elif names and len(cells) >= len(names):
            after = len(cells) - (len(names) - before - 1)
            yield dict(zip(names, cells[:before] + [" ".join(cells[before:after])] + cells[after:]))


def read_kernels(table, peer, rows):
    for row in columns(rows):
        try:
            if table == "error":
                yield {"case": row["case"], "tensor": row["tensor"], "ours": float(row["ours"]),
                       "theirs": float(row["PyTorch"])}
                continue
            if table == "decode":
                yield {"case": row["case"], "heads": int(row["heads"]), "dim": int(row["dim"]),
                       "us": float(row["us"]), "gb_per_s": float(row["GB/s"]),
                       "share": float(row["share"].rstrip("%")), "copy_us": float(row["copy"]),
                       "chunked_us": float(row["chunked"])}
                continue
            if table == "sustained":
                for kind in ("rested", "sustained"):
                    yield {"table": kind, "peer": peer, "case": row["case"], "heads": int(row["heads"]),
                           "kv": int(row["kv"]), "dim": int(row["dim"]),
                           "forward": float(row[f"fwd_{kind}"]), "backward": float(row[f"bwd_{kind}"])}
                continue
            yield {"peer": row.get("peer", peer), "case": row["case"], "heads": int(row["heads"]),
                   "kv": int(row.get("kv", 0)), "dim": int(row["dim"]),
                   "forward": float(row["fwd"]), "forward_ms": float(row["fwd ms"]),
                   "backward": float(row["bwd"]), "backward_ms": float(row["bwd ms"])}
        except ValueError:
            pass  # A peer's error message with as many words as there are columns.


def read_ops(rows):
    number = r"\s+([\d.]+)"
    for row in rows:
        if found := re.fullmatch(r"(.+?)" + number + " us" + number + r" TFLOP/s\s*", row):
            yield {"op": found[1].strip(), "us": float(found[2]), "tflops": float(found[3])}
        elif found := re.fullmatch(r"(.+?)" + number * 4 + r"%\s*", row):
            yield {"op": found[1].strip(), "us": float(found[3]), "gb_per_s": float(found[4]),
                   "share": float(found[5])}


def read(args):
    rows = sys.stdin.read().splitlines()
    lines = read_ops(rows) if args.section == "ops" else read_kernels(args.table, args.peer, rows)
    for line in lines:
        print(json.dumps({"section": args.section, "table": args.table, **line}))


def step(args):
    with open(args.file, encoding="utf-8") as file:
        measured = json.load(file)
    for point in measured["points"]:
        seconds, flops = point["step_s"], point["model_flops"]
        tokens = point["length"] * point["documents"]
        print(json.dumps({
            "peer": OURS, "preset": args.preset, "seq": point["length"], "batch": point["documents"],
            "recompute": measured["recompute"], "products": "fp8" if measured["fp8"] else "bf16",
            "loss": round(point["loss"], 3), "tokens_per_s": round(tokens / seconds),
            "step_ms": round(seconds * 1e3, 2), "model_tflops": round(flops / seconds * 1e-12, 1),
            "mfu": round(flops / seconds / measured["matrix_product_flops"], 3),
            "peak_GiB": round(point["peak_bytes"] / 2**30, 1)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show")
    command.add_argument("--markdown", help="file to write the same tables to")
    command.add_argument("lines", nargs="+")
    command.set_defaults(run=show)
    command = commands.add_parser("read")
    for name in ("section", "table", "peer"):
        command.add_argument(name)
    command.set_defaults(run=read)
    command = commands.add_parser("step")
    command.add_argument("preset")
    command.add_argument("file")
    command.set_defaults(run=step)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
