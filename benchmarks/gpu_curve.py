#!/usr/bin/env python3
"""Draws the loss curves of several runs over one another, and prints a JSON line for each.

    gpu_curve.py OUT.svg NAME=RUN_FOLDER ...
"""
import json
import pathlib
import statistics
import sys

COLORS = ["#1f6fb2", "#d1691f", "#3a8f4d", "#8a4fa3"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 480, 64, 24, 44, 52


def read_run(folder):
    """(step, loss) of training and of the held-out documents, and tokens per second."""
    with open(pathlib.Path(folder) / "metrics.jsonl") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    points = {event: [(line["step"], line["loss"]) for line in lines if line["event"] == event]
              for event in ("train", "eval")}
    if not points["train"]:
        sys.exit(f"{folder}/metrics.jsonl: no training step in it")
    speed = statistics.median(line["tokens_per_s"] for line in lines if line["event"] == "train")
    return points["train"], points["eval"], speed


def summary(name, train, held_out, speed):
    averaged = max(1, min(20, len(train) // 4))
    line = {"section": "curve", "device": name, "steps": train[-1][0], "first_loss": train[0][1],
            "last_loss": train[-1][1], "averaged": averaged,
            "mean_of_last": statistics.fmean(loss for _, loss in train[-averaged:]), "tokens_per_s": speed}
    if held_out:
        line["held_out_loss"] = held_out[-1][1]
    return line


def ticks(low, high):
    """Round numbers, at most eight."""
    size = 10.0 ** -6
    while True:
        for factor in (1, 2, 5):
            if (high - low) / (size * factor) <= 8:
                step = size * factor
                first = -int(-low // step)
                return [i * step for i in range(first, int(high // step) + 1)]
        size *= 10


def draw(runs):
    losses = [loss for train, held_out, _ in runs.values() for _, loss in train + held_out]
    low, high = min(losses), max(losses)
    margin = 0.05 * (high - low) or 1
    low, high = low - margin, high + margin
    last = max(train[-1][0] for train, _, _ in runs.values())

    def place(step, loss):
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return f"{x:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for value in ticks(low, high):
        y = place(0, value).split(",")[1]
        parts.append(f'<path d="M{LEFT},{y}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                     f'<text x="{LEFT - 8}" y="{y}" text-anchor="end" dominant-baseline="middle">'
                     f'{value:g}</text>')
    for value in ticks(0, last):
        x = place(value, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">step</text>')
    parts.append(f'<text x="{LEFT}" y="24">loss (nats a token): training as lines, held out as circles</text>')
    for i, (name, (train, held_out, _)) in enumerate(runs.items()):
        color = COLORS[i % len(COLORS)]
        # The first is drawn wide, so that one that covers it leaves an edge.
        line = " ".join(place(*point) for point in train)
        width, opacity = (2.8, 0.5) if i == 0 else (1, 1)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" '
                     f'stroke-width="{width}" stroke-opacity="{opacity}"/>')
        for point in held_out:
            x, y = place(*point).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="{5 - 2 * min(i, 1)}" fill="none" stroke="{color}" '
                         'stroke-width="1.6"/>')
        x = WIDTH - RIGHT - 150
        parts.append(f'<path d="M{x},{TOP + 14 + 20 * i}h28" stroke="{color}" stroke-width="3"/>'
                     f'<text x="{x + 36}" y="{TOP + 18 + 20 * i}">{name}</text>')
    return "\n".join(parts + ["</svg>"]) + "\n"


def main():
    if len(sys.argv) < 3 or any("=" not in argument for argument in sys.argv[2:]):
        sys.exit(__doc__)
    folders = dict(argument.split("=", 1) for argument in sys.argv[2:])
    runs = {name: read_run(folder) for name, folder in folders.items()}
    pathlib.Path(sys.argv[1]).write_text(draw(runs))
    for name, run in runs.items():
        print(json.dumps(summary(name, *run)))


if __name__ == "__main__":
    main()
