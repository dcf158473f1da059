#!/usr/bin/env python3
"""The planner of disaggregated attention beside the algorithm that DistCA's authors released.

For each workload 30 batches: `evenkeel plan --lengths` plans each, and the greedy algorithm of the
released planner, written again here from its description, plans the same batch with its own head/tail
placement of documents. What ranks send and receive is counted alike for both, from owners and tasks:
queries that are elsewhere than their server, and each document's keys and values once a server, up to
the last that it needs. Forward pass of one layer, bf16, of one of 8 tensor-parallel ranks.

Columns, means over the batches:
  before       heaviest server / mean where the tokens are
  after        the same as planned, and mean / lightest; in brackets the worst batch
  recv, send   MB (10^6) that the busiest server receives and sends
  x            ours / released
  least        what the rank that has to send (receive) most sends (receives) in any plan of whole
               key prefixes in which no server has more than 1 + tolerance of the mean: a lower bound,
               and ours / it
  as sent      what the released system sends: its buffers also carry what stays on a rank
  ms           median planning time of evenkeel

Examples:
  benchmarks/disaggregation_planner.py --lengths FOLDER
  benchmarks/disaggregation_planner.py --lengths FOLDER --tolerance 0.02 --rows 'prolong.*'
  benchmarks/disaggregation_planner.py --lengths FOLDER --placement head-tail --epsilon 0.15
  benchmarks/disaggregation_planner.py --lengths FOLDER --scale
FOLDER holds pretrain.json and prolong.json, lists of document lengths.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile

from document_mixes import batches

K = 1024
LLAMA_8B, LLAMA_34B = "configs/llama3_8b.yaml", "configs/llama_34b.yaml"
# As in the paper; the public 34B has 8.
SETTINGS = {LLAMA_8B: [], LLAMA_34B: ["--set", "model.num_kv_heads=16"]}
# mix, config, context, servers, tokens a server
ROWS = [
    ("pretrain", LLAMA_8B, 128 * K, 8, 64 * K),
    ("pretrain", LLAMA_8B, 128 * K, 32, 64 * K),
    ("pretrain", LLAMA_8B, 512 * K, 32, 64 * K),
    ("prolong", LLAMA_8B, 128 * K, 16, 64 * K),
    ("shuffled", LLAMA_8B, 128 * K, 16, 64 * K),
    ("prolong", LLAMA_8B, 512 * K, 32, 64 * K),
    ("shuffled", LLAMA_8B, 512 * K, 32, 64 * K),
    ("pretrain", LLAMA_34B, 128 * K, 8, 32 * K),
    ("pretrain", LLAMA_34B, 512 * K, 32, 64 * K),
]
SCALE_ROWS = [
    ("pretrain", LLAMA_8B, 128 * K, 64, 64 * K),
    ("pretrain", LLAMA_8B, 512 * K, 64, 64 * K),
    ("shuffled", LLAMA_8B, 128 * K, 64, 64 * K),
    ("pretrain", LLAMA_8B, 128 * K, 512, 64 * K),
    ("pretrain", LLAMA_8B, 512 * K, 512, 64 * K),
    ("shuffled", LLAMA_8B, 128 * K, 512, 64 * K),
    ("shuffled", LLAMA_8B, 512 * K, 512, 64 * K),
]


def pairs(begin, end):
    """(query, key) pairs of queries [begin, end) under the causal mask."""
    return (end * (end + 1) - begin * (begin + 1)) // 2


def recount(pieces, tasks, servers, q_bytes, kv_bytes):
    """Bytes that every server sends and receives, and those that stay where they are.

    pieces: of each document its (owner, begin, end). tasks: (server, document, q_begin, q_end).
    """
    send, recv, stays = [0] * servers, [0] * servers, [0] * servers

    def carry(owner, server, size):
        if owner == server:
            stays[server] += size
        else:
            send[owner] += size
            recv[server] += size

    reach = {}
    for server, document, begin, end in tasks:
        reach[server, document] = max(reach.get((server, document), 0), end)
        for owner, first, last in pieces[document]:
            carry(owner, server, q_bytes * max(0, min(end, last) - max(begin, first)))
    for (server, document), end in reach.items():
        for owner, first, last in pieces[document]:
            carry(owner, server, kv_bytes * max(0, min(end, last) - first))
    return send, recv, stays


class Pair:
    """k tokens from `head` on of a document of `length`, and as many that end at length - head."""

    def __init__(self, document, length, server, head, k):
        self.document, self.length, self.server, self.head, self.k = document, length, server, head, k

    def work(self):
        return self.k * (self.length + 1)

    def ranges(self):
        """The two ranges of queries; k is a multiple of a half, where a document is one pair."""
        head, tail = int(self.head), self.length - int(self.head)
        middle = [int(self.head + self.k), int(self.length - self.head - self.k)]
        if middle[1] - middle[0] <= 1:
            return [(head, tail)]
        return [(head, middle[0]), (middle[1], tail)]


def place_pairs(lengths, servers, room_each):
    """Documents in order, so many tokens a server; what crosses is cut into pairs."""
    items, server, room = [], 0, room_each
    for document, length in enumerate(lengths):
        head, rest = 0, length
        while rest > 0:
            take = min(rest, room)
            items.append(Pair(document, length, server, head, take / 2))
            head += take / 2
            rest -= take
            room -= take
            if room == 0:
                server, room = server + 1, room_each
    return items


def plan_released(items, servers, epsilon, q_bytes, k_bytes):
    """The released greedy: each server that has too little, the neediest first, takes from those with
    too much what has the fewest bytes for its work, by an estimate that counts whole documents."""
    load = [0] * servers
    for item in items:
        load[item.server] += item.work()
    mean = sum(load) / servers
    surplus = [each - mean for each in load]
    for server in sorted((s for s in range(servers) if surplus[s] < 0), key=lambda s: surplus[s]):
        need = -surplus[server]
        while need > epsilon * mean:
            best = None
            for item in items:
                most = min(surplus[item.server], need, item.work())
                if most <= 0:
                    continue
                bytes_moved = q_bytes * most / (item.length + 1) + 2 * k_bytes * (item.length + 1)
                if best is None or bytes_moved / most < best[0]:
                    best = (bytes_moved / most, item, most)
            if best is None:
                break
            _, item, most = best
            donor = item.server
            if most >= item.work():
                moved = item.work()
                item.server = server
            else:
                k = int(most / (item.length + 1))
                if k == 0:
                    break
                moved = k * (item.length + 1)
                items.append(Pair(item.document, item.length, server, item.head + item.k - k, k))
                item.k -= k
            surplus[donor] -= moved
            surplus[server] += moved
            need -= moved
    return items


def least_bytes(lengths, pieces, servers, tolerance, q_bytes, kv_bytes):
    """Lower bounds of the most that any server sends, and receives.

    A server does at most (1 + tolerance) means of work. An owner that spends `x` of that on queries
    of its own has to send the rest of them, the fewest tokens for their work being the latest; and
    the queries after a piece, less what the owner itself may compute of them, are the work of at least
    so many other servers, each of which needs the whole piece's keys. The last query of a document
    needs all keys, of which its server holds at most what it owns.
    """
    most = (1 + tolerance) * sum(pairs(0, length) for length in lengths) / servers
    owned = [[] for _ in range(servers)]  # (begin, end, length of the document)
    receive = 0
    for document, length in enumerate(lengths):
        held = {}
        for owner, begin, end in pieces[document]:
            owned[owner].append((begin, end, length))
            held[owner] = held.get(owner, 0) + end - begin
        receive = max(receive, kv_bytes * (length - max(held.values())))
    send = 0
    for mine in owned:
        mine.sort(key=lambda piece: -piece[1])  # the most work a token first
        least = math.inf
        for step in range(21):
            own = most * step / 20
            # Work of own queries that leaves, and its fewest tokens.
            rest, tokens = sum(pairs(begin, end) for begin, end, _ in mine) - most * (step + 1) / 20, 0
            for begin, end, _ in mine:
                if rest <= 0:
                    break
                tokens += min(end - begin, rest / end)
                rest -= pairs(begin, end)
            size = q_bytes * tokens
            for begin, end, length in mine:
                others = math.ceil((pairs(end, length) - (most - own)) / most - 1e-9)
                size += kv_bytes * (end - begin) * max(0, others)
            least = min(least, size)
        send = max(send, least)
    return receive, send


def ours(options, lengths, row, tolerance):
    _, config, _, servers, tokens = row
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(lengths, file)
        file.flush()
        output = subprocess.run(
            [options.evenkeel, "plan", "--lengths", file.name, "--servers", str(servers),
             "--tokens-per-server", str(tokens), "--model", config, "--set", "parallel.tp=8",
             *SETTINGS[config], "--placement", options.placement, "--tolerance", str(tolerance), "--json"],
            check=True, stdout=subprocess.PIPE, text=True).stdout
    plan = json.loads(output)
    pieces = [[(p["owner"], p["begin"], p["begin"] + p["length"]) for p in document["pieces"]]
              for document in plan["documents"]]
    tasks = [(t["server"], t["document"], t["q_begin"], t["q_begin"] + t["q_len"])
             for t in plan["tasks"]]
    q, kv = plan["token_bytes"]["q"], plan["token_bytes"]["kv"]
    send, recv, _ = recount(pieces, tasks, servers, q, kv)
    if send != plan["send_bytes"] or recv != plan["recv_bytes"]:
        raise RuntimeError(f"{row}: bytes do not recount")
    least_recv, least_send = least_bytes(lengths, pieces, servers, tolerance, q, kv)
    load, before = plan["load"], plan["load_in_place"]
    mean = sum(load) / servers
    return {"before": max(before) / mean, "heavy": max(load) / mean, "light": mean / min(load),
            "recv": max(recv), "send": max(send), "mean": sum(recv) / servers,
            "least_recv": least_recv, "least_send": least_send, "ms": plan["planning_ms"],
            "rounds": plan["rounds"], "q": q, "kv": kv}


def released(lengths, row, epsilon, q_bytes, kv_bytes):
    _, _, _, servers, tokens = row
    items = place_pairs(lengths, servers, tokens)
    pieces = [[] for _ in lengths]
    before = [0] * servers
    for item in items:
        before[item.server] += item.work()
        pieces[item.document] += [(item.server, *r) for r in item.ranges()]
    items = plan_released(items, servers, epsilon, q_bytes, kv_bytes // 2)
    load = [0] * servers
    for item in items:
        load[item.server] += item.work()
    tasks = [(item.server, item.document, *r) for item in items for r in item.ranges()]
    send, recv, stays = recount(pieces, tasks, servers, q_bytes, kv_bytes)
    mean = sum(load) / servers
    return {"before": max(before) / mean, "heavy": max(load) / mean, "light": mean / min(load),
            "recv": max(recv), "send": max(send),
            "as_sent": max(a + b for a, b in zip(send, stays))}


def mean_of(results, key):
    return statistics.fmean(each[key] for each in results)


def name_of(row):
    mix, config, context, servers, tokens = row
    model = re.search(r"_(\d+b)", config)[1]
    return f"{mix} {model} {context // K}K, {servers} x {tokens // K}K"


def compare(options, row):
    _, _, context, servers, tokens = row
    work = batches(options.lengths, row[0], context, servers * tokens, options.batches, options.seed)
    mine, theirs = [], []
    for lengths in work:
        mine.append(ours(options, lengths, row, options.tolerance))
        if not options.scale:
            theirs.append(released(lengths, row, options.epsilon, mine[-1]["q"], mine[-1]["kv"]))
    line = {"name": name_of(row), "batches": len(work),
            "documents": statistics.fmean(len(lengths) for lengths in work),
            "ms": statistics.median(each["ms"] for each in mine),
            "worst_heavy": max(each["heavy"] for each in mine),
            "worst_light": max(each["light"] for each in mine)}
    line |= {key: mean_of(mine, key) for key in mine[0] if key not in ("ms", "q", "kv")}
    if theirs:
        line["released"] = {key: mean_of(theirs, key) for key in theirs[0]}
    return line


def show(line, with_released):
    mb = 1e6
    text = (f"{line['name']:28} {line['documents']:6.0f} {line['before']:6.2f} "
            f"{line['heavy']:6.3f} {line['light']:6.3f} ({line['worst_heavy']:.3f}, "
            f"{line['worst_light']:.3f})")
    for side in ("recv", "send"):
        text += f" | {line[side] / mb:6.0f}"
        if with_released:
            text += f" {line[side] / line['released'][side]:5.2f}"
        least = line[f"least_{side}"]
        text += f" {least / mb:6.0f} {line[side] / least if least else math.inf:5.2f}"
    text += f" | {line['ms']:7.3f} {line['rounds']:6.1f}"
    if with_released:
        r = line["released"]
        text += (f" | {r['before']:5.2f} {r['heavy']:6.3f} {r['recv'] / mb:5.0f} {r['send'] / mb:5.0f} "
                 f"{r['as_sent'] / mb:6.0f}")
    print(text, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", required=True, metavar="FOLDER",
                        help="folder with pretrain.json and prolong.json")
    parser.add_argument("--evenkeel", default="build/cpu/launch/evenkeel", help="the program")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of evenkeel's plans")
    parser.add_argument("--epsilon", type=float, default=0.05, help="of the released algorithm's")
    parser.add_argument("--placement", choices=("in-order", "head-tail"), default="in-order",
                        help="how evenkeel's documents lie; the released algorithm's always head-tail")
    parser.add_argument("--batches", type=int, default=30, help="of each workload")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", default=".", help="regular expression of workloads to run")
    parser.add_argument("--scale", action="store_true",
                        help="planning times on 64 and 512 servers, evenkeel alone")
    parser.add_argument("--out", metavar="FILE", help="receives one JSON object a workload")
    options = parser.parse_args()
    if not os.path.exists(options.evenkeel):
        parser.error(f"--evenkeel {options.evenkeel}: no such file; build the target `evenkeel`")
    side = "busiest      x  least     x" if not options.scale else "busiest  least     x"
    head = (f"{'workload':28} {'docs':>6} {'before':>6} {'after heavy, light, worst':>29} | "
            f"{'recv: ' + side} | {'send: ' + side} | {'ms':>7} {'rounds':>6}")
    if not options.scale:
        head += " | released: before, after, recv, send, as sent"
    print(head)
    lines = []
    for row in SCALE_ROWS if options.scale else ROWS:
        if re.search(options.rows, name_of(row)):
            lines.append(compare(options, row))
            show(lines[-1], not options.scale)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
