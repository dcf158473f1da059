#!/usr/bin/env python3
"""Draws the figures of docs/disaggregation.md beside itself. No dependencies.

    python3 docs/figures/disaggregation.py
"""

import os
from xml.sax.saxutils import escape

INK, GREY, LINE = "#24292f", "#59636e", "#8c959f"
BLUE, BLUE_DARK = "#cfe3f7", "#7fb2e5"  # rank 0, nano-batch 0
ORANGE, ORANGE_DARK = "#fbe3c4", "#f0b267"  # rank 1, nano-batch 1
GREEN = "#d3ecd3"
EMPTY = "#f3f4f6"


class Drawing:
    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def rect(self, x, y, width, height, fill, stroke=LINE, dash=None):
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
            f'stroke="{stroke}"{dashed}/>')

    def polygon(self, points, fill, stroke=LINE):
        text = " ".join(f"{x:.6g},{y:.6g}" for x, y in points)
        self.parts.append(f'<polygon points="{text}" fill="{fill}" stroke="{stroke}"/>')

    def line(self, x1, y1, x2, y2, arrow=False, stroke=LINE, dash=None):
        end = ' marker-end="url(#arrow)"' if arrow else ""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" '
                          f'stroke="{stroke}"{dashed}{end}/>')

    def text(self, x, y, text, size=12, fill=INK, anchor="start", bold=False):
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" '
                          f'text-anchor="{anchor}"{weight}>{escape(text)}</text>')

    def box(self, x, y, width, height, fill, lines, size=11, dash=None):
        self.rect(x, y, width, height, fill, dash=dash)
        lines = [lines] if isinstance(lines, str) else lines
        first = y + height / 2 + size * 0.36 - (len(lines) - 1) * (size + 2) / 2
        for i, line in enumerate(lines):
            self.text(x + width / 2, first + i * (size + 2), line, size, anchor="middle")

    def write(self, name):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
                f'font-family="Helvetica, Arial, sans-serif">\n<title>{escape(self.title)}</title>\n'
                '<defs><marker id="arrow" markerWidth="8" markerHeight="8" refX="7" refY="4" '
                f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{GREY}"/></marker></defs>\n'
                f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>\n')
        with open(path, "w", encoding="utf-8") as file:
            file.write(head + "\n".join(self.parts) + "\n</svg>\n")


def pairs(begin, end):
    """Of queries [begin, end) with all keys up to each."""
    return (end * (end + 1) - begin * (begin + 1)) // 2


# One document of 64K tokens on rank 0, 32 of 2K on rank 1; and the plan in docs/disaggregation.md.
TOKENS, SHORT = 65536, 2048
PLAN = [(0, 20096, 0), (20096, 30080, 1), (30080, 32768, 0), (32768, 51456, 1), (51456, 65536, 0)]


def draw_two_ranks():
    d = Drawing(860, 330, "Two ranks with equal tokens and unequal pairs, in place and in a pool")
    side, top = 200, 62
    scale = side / TOKENS

    def band(x, begin, end, fill, stroke):
        b, e = begin * scale, end * scale
        d.polygon([(x, top + b), (x + b, top + b), (x + e, top + e), (x, top + e)], fill, stroke)

    def square(x, title):
        d.rect(x, top, side, side, "#ffffff", stroke="#d0d7de")
        d.text(x + side / 2, top - 10, title, 12, anchor="middle")

    load = {"in place": [0, 0], "in the pool": [0, 0]}
    x0, x1, x2 = 34, 264, 494
    square(x0, "rank 0: 1 document of 64K")
    band(x0, 0, TOKENS, BLUE, BLUE_DARK)
    load["in place"][0] = pairs(0, TOKENS)
    square(x1, "rank 1: 32 documents of 2K")
    for i in range(TOKENS // SHORT):
        b, e = i * SHORT * scale, (i + 1) * SHORT * scale
        d.polygon([(x1 + b, top + b), (x1 + e, top + e), (x1 + b, top + e)], ORANGE_DARK,
                  ORANGE_DARK)
        load["in place"][1] += pairs(0, SHORT)
    square(x2, "rank 0's document in the pool")
    load["in the pool"][1] = load["in place"][1]
    for begin, end, server in PLAN:
        band(x2, begin, end, (BLUE, ORANGE)[server], (BLUE_DARK, ORANGE_DARK)[server])
        load["in the pool"][server] += pairs(begin, end)
        if end - begin > 3000:  # else there is no room
            d.text(x2 + 5, top + (begin + end) / 2 * scale + 3, f"rank {server}", 9, GREY)
    half = top + side / 2
    d.line(x2 - 6, half, x2 + side, half, stroke=INK, dash="4 3")
    d.text(x2 + side - 2, half - 5, "first nano-batch above", 10, GREY, "end")
    for x in (x0, x1, x2):
        d.text(x + side / 2, top + side + 16, "keys", 10, GREY, "middle")
    d.parts.append(f'<text transform="translate({x0 - 10},{top + side / 2}) rotate(-90)" '
                   f'font-size="10" fill="{GREY}" text-anchor="middle">queries</text>')
    d.text(34, 24, "Area = (query, key) pairs of core attention", 13, bold=True)

    x, most = 722, load["in place"][0]
    d.text(x, 24, "Pairs, millions", 13, bold=True)
    for i, (name, loads) in enumerate(load.items()):
        y = top + i * 106
        d.text(x, y, name, 12)
        for rank, value in enumerate(loads):
            d.rect(x, y + 10 + 34 * rank, max(1.5, 110 * value / most), 14,
                   (BLUE_DARK, ORANGE_DARK)[rank], "none")
            d.text(x, y + 36 + 34 * rank, f"rank {rank}: {value / 1e6:,.0f}", 11, GREY)
    d.text(34, 310, "Equal tokens: norms, projections and feed-forward take both ranks equally long. "
           "Their core attention differs 32 times.", 12)
    d.write("disaggregation_two_ranks.svg")


def draw_buffers():
    d = Drawing(860, 446, "From owners' rows to a server's buffers")
    d.text(20, 24, "Owners' rows (queries, keys and values of the same tokens)", 13, bold=True)
    unit = 0.27

    def rows(x, y, parts, height=26):
        for begin, end, fill, label in parts:
            d.box(x, y, (end - begin) * unit, height, fill, label, 10)
            x += (end - begin) * unit

    d.text(20, 58, "rank 0", 12)
    rows(80, 42, [(0, 384, EMPTY, "A 0 .. 384"), (384, 512, BLUE_DARK, "")])
    d.text(80 + 384 * unit, 82, "384 .. 512", 10, GREY)
    d.text(300, 58, "rank 1", 12)
    rows(350, 42, [(512, 640, ORANGE_DARK, ""), (640, 896, EMPTY, "A 640 .. 896"),
                   (896, 1024, ORANGE_DARK, "")])
    d.text(350, 82, "512 .. 640", 10, GREY)
    d.text(350 + 384 * unit, 82, "896 .. 1024", 10, GREY)
    d.text(560, 58, "rank 2", 12)
    rows(610, 42, [(0, 256, EMPTY, "B 0 .. 256"), (256, 512, GREEN, "B 256 .. 512"),
                   (0, 300, "#ffffff", "C: whole")])
    d.text(20, 104, "Coloured: the queries that rank 2 computes. Of A it has two tasks; the other "
           "queries of A and B 0 .. 256 are computed elsewhere. C stays where it is.", 11, GREY)

    q, k = 180, 276
    d.text(20, 146, "Rank 2 as a server: rows in the order (document, position)", 13, bold=True)
    x, wide = 130, unit * 1.6
    d.text(20, q + 18, "queries", 12)
    at = x
    for width, fill, lines in ((128, BLUE_DARK, ["A 384", ".. 512"]),
                               (128, ORANGE_DARK, ["A 512", ".. 640"]),
                               (128, ORANGE_DARK, ["A 896", ".. 1024"]),
                               (256, GREEN, ["B 256 .. 512"])):
        d.box(at, q, width * wide, 28, fill, lines, 9)
        at += width * wide
    for row in (0, 128, 256, 384, 640):
        d.text(x + row * wide, q - 6, str(row), 9, GREY, "middle")

    def brace(begin, end, y, label):
        left, right = x + begin * wide + 2, x + end * wide - 2
        d.line(left, y, right, y, stroke=GREY)
        d.line(left, y, left, y - 4, stroke=GREY)
        d.line(right, y, right, y - 4, stroke=GREY)
        d.text((left + right) / 2, y + 14, label, 10, GREY, "middle")

    brace(0, 128, q + 36, "from 0")
    brace(128, 384, q + 36, "one message from 1")
    brace(384, 640, q + 36, "copied here")

    d.text(20, k + 12, "keys and", 12)
    d.text(20, k + 26, "values", 12)
    at = x
    for width, fill, lines in ((512, BLUE, "A 0 .. 512"), (512, ORANGE, "A 512 .. 1024"),
                               (512, GREEN, "B 0 .. 512")):
        d.box(at, k, width * wide, 28, fill, lines, 10)
        at += width * wide
    for row in (0, 512, 1024, 1536):
        d.text(x + row * wide, k - 6, str(row), 9, GREY, "middle")
    brace(0, 512, k + 36, "one message from 0")
    brace(512, 1024, k + 36, "one message from 1")
    brace(1024, 1536, k + 36, "copied here")

    d.text(20, 362, "One launch: tasks {q_begin, q_len, kv_begin, kv_len} in rows of these buffers",
           13, bold=True)
    for i, (task, what) in enumerate(
        (("{0, 256, 0, 640}", "A 384 .. 640 on keys 0 .. 640"),
         ("{256, 128, 0, 1024}", "A 896 .. 1024 on keys 0 .. 1024: the same rows, not a copy"),
         ("{384, 256, 1024, 512}", "B 256 .. 512 on keys 0 .. 512"))):
        d.text(40, 384 + 18 * i, task, 12)
        d.text(200, 384 + 18 * i, what, 12, GREY)
    d.write("disaggregation_buffers.svg")


def draw_ping_pong():
    d = Drawing(860, 460, "Compute and communication of one layer, forward and backward")
    left, width, gap = 106, 146, 2

    def lanes(top, title, compute, comm):
        """Both are lists of (nano, lines, is_attend) or (nano, lines), one a slot."""
        d.text(20, top, title, 13, bold=True)
        d.text(20, top + 46, "compute", 12)
        d.text(20, top + 106, "messages", 12)
        for i, (nano, lines, is_attend) in enumerate(compute):
            x = left + i * width
            fill = ((BLUE, BLUE_DARK), (ORANGE, ORANGE_DARK))[nano][is_attend]
            d.rect(x, top + 16, width - gap, 52, fill)
            if is_attend:
                d.rect(x, top + 16, 34, 52, "#ffffff", dash="3 2")
                d.text(x + 17, top + 45, "here", 10, GREY, "middle")
            middle = x + (width - gap) / 2 + (17 if is_attend else 0)
            for j, line in enumerate(lines):
                d.text(middle, top + 46 - 7 * (len(lines) - 1) + 14 * j, line, 11, anchor="middle")
        for i, (nano, lines) in enumerate(comm):
            d.box(left + i * width + 8, top + 84, width - gap - 28, 38, (BLUE, ORANGE)[nano], lines, 10)
        for i in range(len(compute) + 1):
            d.line(left + i * width - 1, top + 10, left + i * width - 1, top + 128, stroke="#d0d7de",
                   dash="2 3")

    def arrows(top, slots):
        """From compute slot a to messages of slot a + 1, and back to compute slot b."""
        for a, b in slots:
            x = left + (a + 1) * width
            d.line(x - 8, top + 68, x + 10, top + 83, arrow=True, stroke=GREY)
            to = left + b * width
            d.line(to - 24, top + 84, to + (38 if b in (2, 3) else 6), top + 69, arrow=True,
                   stroke=GREY)

    lanes(30, "Forward, layer l: nano-batch 0 (blue), then 1 (orange)",
          [(0, ["after(l - 1, 0)", "before(l, 0)"], False),
           (1, ["after(l - 1, 1)", "before(l, 1)"], False),
           (0, ["attend(l, 0)"], True), (1, ["attend(l, 1)"], True),
           (0, ["after(l, 0)", "before(l + 1, 0)"], False)],
          [(1, ["out, lse back", "(l - 1, 1)"]), (0, ["q, k, v to servers", "(l, 0)"]),
           (1, ["q, k, v to servers", "(l, 1)"]), (0, ["out, lse back", "(l, 0)"]),
           (1, ["out, lse back", "(l, 1)"])])
    arrows(30, [(0, 2), (1, 3), (2, 4)])

    lanes(210, "Backward, layer l: nano-batch 1 first, as its queries give gradients to keys of 0",
          [(1, ["before'(l + 1, 1)", "after'(l, 1)"], False),
           (0, ["before'(l + 1, 0)", "after'(l, 0)"], False),
           (1, ["attend'(l, 1)"], True), (0, ["attend'(l, 0)"], True),
           (1, ["before'(l, 1)", "after'(l - 1, 1)"], False)],
          [(0, ["dq, dk, dv back", "(l + 1, 0)"]), (1, ["q, k, v, out, dout", "to servers (l, 1)"]),
           (0, ["q, k, v, out, dout", "to servers (l, 0)"]), (1, ["dq, dk, dv back", "(l, 1)"]),
           (0, ["dq, dk, dv back", "(l, 0)"])])
    arrows(210, [(0, 2), (1, 3), (2, 4)])

    y = 372
    for fill, text in ((BLUE, "before: norm, projections, position; after: output projection, "
                        "feed-forward (pale)"),
                       (BLUE_DARK, "attend: core attention that this rank computes for the pool"),
                       ("#ffffff", "here: documents that stay on this rank; computed before it waits "
                        "for messages")):
        d.rect(20, y - 11, 22, 14, fill, dash="3 2" if fill == "#ffffff" else None)
        d.text(52, y, text, 12)
        y += 24
    d.text(20, y, "Arrows: what waits for what (of some). Nothing waits for a whole slot: slots have "
           "equal widths only in the drawing.", 12, GREY)
    d.write("disaggregation_ping_pong.svg")


def draw_ticks(stages=4, micro_batches=4):
    """As SamePhaseTicks and PassAt (parallel/phase_schedule.h), without virtual stages."""
    count = micro_batches + stages - 1
    ticks = [("F", i) for i in range(stages)]
    for i in range(count):
        ticks.append(("B", i))
        if stages + i < count:
            ticks.append(("F", stages + i))
    d = Drawing(860, 262, f"Same-phase ticks of {stages} stages and {micro_batches} micro-batches")
    left, top, height = 84, 56, 34
    width = (860 - left - 20) / len(ticks)
    d.text(20, 24, f"pp {stages}, {micro_batches} micro-batches: in a tick all stages run the same "
           "phase", 13, bold=True)
    for t, (phase, index) in enumerate(ticks):
        x = left + t * width
        d.text(x + width / 2, top - 8, f"{phase}{index}", 10, GREY, "middle")
        for stage in range(stages):
            before = stage if phase == "F" else stages - 1 - stage
            micro = index - before
            y = top + stage * height
            if 0 <= micro < micro_batches:
                d.box(x, y, width - 2, height - 4, BLUE if phase == "F" else ORANGE_DARK,
                      str(micro), 12)
            else:
                d.box(x, y, width - 2, height - 4, "#ffffff", "serves", 10, dash="3 2")
    for stage in range(stages):
        d.text(20, top + stage * height + 19, f"stage {stage}", 12)
    y = top + stages * height + 24
    for x, fill, text in ((20, BLUE, "forward of micro-batch n"),
                          (230, ORANGE_DARK, "backward of micro-batch n"),
                          (446, "#ffffff", "no micro-batch: computes attention for the others")):
        d.rect(x, y - 11, 22, 14, fill, dash="3 2" if fill == "#ffffff" else None)
        d.text(x + 32, y, text, 12)
    d.text(20, y + 26, "Ticks have equal widths only in the drawing; there is no barrier between them.",
           12, GREY)
    d.write("disaggregation_ticks.svg")


if __name__ == "__main__":
    draw_two_ranks()
    draw_buffers()
    draw_ping_pong()
    draw_ticks()
