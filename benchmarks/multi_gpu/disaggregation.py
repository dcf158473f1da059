#!/usr/bin/env python3
"""Disaggregated attention beside per-document cp and plain dp, on two mixes of document lengths.

    (a) plain dp          a sample, or several, on each rank
    (b) per-document cp   the same tokens in zigzag over all ranks, keys gathered
    (c) disaggregated     with its variants: messages, tolerances, a measured cost

Every case of a mix and context trains on the same documents, a step's on the same ranks. The model has
the layers of Llama 3 8B, four of them, and a small vocabulary, so that the head weighs little. Beside each
case stands what `evenkeel simulate` foretells for just these batches, which leaves out the optimizer and
the reduction of gradients.
"""

import dataclasses
import json
import os
import statistics
import sys

from part import Part, Training, first_error
import datasets


@dataclasses.dataclass
class Size:
    config: str
    settings: list
    recompute: str
    cluster: str
    simulate: list
    bench: list      # lengths for `evenkeel bench attention`
    contexts: list   # the one with all variants first
    tokens: dict     # of a rank, by context


FULL = Size("configs/llama3_8b.yaml",
            ["model.num_layers=4", "model.vocab_size=32000", "model.max_position_embeddings=524288"],
            "all_but_attention", "configs/clusters/h100.yaml", [],
            ["--q-lens", "128,1024,8192", "--kv-lens", "128,1024,8192,65536,131072", "--runs", "2"],
            [65536, 131072, 32768, 262144, 524288],
            {32768: 65536, 65536: 65536, 131072: 131072, 262144: 131072, 524288: 131072})
SMALL = Size("configs/tiny_llama.yaml", ["model.num_layers=2"], "none",
             "configs/clusters/cpu_ranks.yaml", ["--element-bytes", "4"],
             ["--q-lens", "128", "--kv-lens", "128,1024", "--runs", "1"],
             [1024, 512, 2048], {512: 1024, 1024: 1024, 2048: 1024})

MIXES = ("pretrain", "prolong")


@dataclasses.dataclass
class Variant:
    text: str
    parallel: list
    system: str = "disaggregated"  # as `evenkeel simulate` calls it
    simulate: list = dataclasses.field(default_factory=list)
    quick: bool = False
    everywhere: bool = False       # in every mix and context, not only in the first


PLAIN = Variant("(a) plain dp", [], "plain dp", quick=True, everywhere=True)
PER_DOCUMENT = Variant("(b) per-document cp", [], "balanced dp x cp", quick=True, everywhere=True)
POOLED = [
    Variant("(c) disaggregated, ping-pong", ["ping_pong=on"], quick=True, everywhere=True),
    Variant("(c) one stream", ["ping_pong=serial"], simulate=["--messages", "one-stream"],
            everywhere=True),
    Variant("(c) not halved", ["ping_pong=off"], system=""),
    Variant("(c) signal", ["ping_pong=on", "attention_messages=signal"],
            simulate=["--messages", "signal"]),
    *(Variant(f"(c) tolerance {tolerance}", ["ping_pong=on", f"attention_tolerance={tolerance}"],
              simulate=["--tolerance", tolerance]) for tolerance in ("0.001", "0.1", "0.2", "0.5")),
    Variant("(c) measured cost", ["ping_pong=on", "attention_cost={cost}"], system=""),
]


def label(tokens):
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)


class Comparison:
    """All cases of one mix and context."""

    def __init__(self, part, size, mix, context):
        self.part, self.size, self.mix, self.context = part, size, mix, context
        n = part.options.ranks
        self.tokens = size.tokens[context]
        self.cp = max(1, context // self.tokens)
        self.batch = n * self.tokens // context
        self.steps = 3 if context <= 131072 else 2
        self.samples = None
        self.predicted = {}

    def is_possible(self):
        return self.cp <= self.part.options.ranks

    def variants(self, is_first):
        first = ([PLAIN] if self.cp == 1 else []) + [PER_DOCUMENT]
        return [variant for variant in first + POOLED if is_first or variant.everywhere]

    def training(self, variant, cost):
        n = self.part.options.ranks
        if variant is PLAIN:
            parallel, micro = [f"dp={n}"], self.batch // n
        elif variant is PER_DOCUMENT:
            parallel, micro = [f"cp={n}"], self.batch
        else:
            parallel = [f"dp={n // self.cp}", f"cp={self.cp}", "attention=disaggregated"]
            parallel += [setting.format(cost=cost) for setting in variant.parallel]
            micro = max(1, self.batch * self.cp // n)
        settings = [*self.size.settings, *(f"parallel.{setting}" for setting in parallel),
                    f"train.micro_batch_size={micro}", f"runtime.recompute={self.size.recompute}"]
        if "attention_messages=signal" in parallel:
            settings.append("train.on_nonfinite=skip")  # what is computed is wrong
        name = f"{self.mix} {label(self.context)}, {variant.text}"
        return Training(name, n, self.size.config, self.context, self.batch, settings,
                        samples=self.samples, steps=self.steps, quick=variant.quick,
                        facts={"mix": self.mix, "variant": variant.text, "layout": parallel[:2]})

    def make_samples(self, lengths):
        self.samples = datasets.mixed_samples(lengths, self.mix, self.context,
                                              self.batch * (1 + self.steps))

    def predict(self, variant, overrides):
        """(ms, idle share) of the timed steps by the simulator, or nothing."""
        if not variant.system:
            return {}
        key = tuple(variant.simulate)
        if key not in self.predicted:
            self.predicted[key] = self._simulate(variant.simulate, overrides)
        system = self.predicted[key].get("systems", {}).get(variant.system)
        if not system:
            return {}
        return {"predicted_ms": 1e3 * statistics.mean(system["step_seconds"][1:]),
                "predicted_idle": system["idle_share"],
                "predicted_layout": f"dp {system['dp']} cp {system['cp']}"}

    def _simulate(self, more, overrides):
        part, size = self.part, self.size
        path = os.path.join(part.folder, "lengths.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump([length for sample in self.samples for length in sample], file)
        command = [part.evenkeel, "simulate", "-m", size.config, "--cluster", size.cluster,
                   "--lengths", path, "-n", str(part.options.ranks), "--tp", "1", "--pp", "1",
                   "--cp", str(self.cp), "--max-doc-len", str(self.context), "--batch",
                   str(self.batch), "--batches", str(1 + self.steps), "--recompute", size.recompute,
                   "--json", *size.simulate, *more]
        for setting in size.settings:
            command += ["--model-set", setting]
        for setting in overrides:
            command += ["--set", setting]
        code, output = part.run(command, min(60, part.left()),
                                f"disaggregation-simulate-{self.mix}-{self.context}{''.join(more)}")
        if code != 0:
            part.fail(f"simulate {self.mix} {self.context}", f"exit code {code}", first_error(output))
            return {}
        return json.loads(output[output.index("\n{") + 1:])


def measure_cost(part, size):
    """Times this machine's attention kernels, for the simulator and for the case that plans with them."""
    path = os.path.abspath(os.path.join(part.options.out, "attention_cost.json"))
    if part.options.resume and os.path.exists(path):
        return path
    command = [part.evenkeel, "bench", "attention", "--model", size.config, "--device",
               part.options.device, "--json", path, *size.bench]
    if part.options.device == "cpu":
        command += ["--threads", "1"]
    code, output = part.run(command, min(90, part.left()), "disaggregation-bench-attention")
    if code != 0:
        part.fail("bench attention", f"exit code {code}", first_error(output))
        return None
    return path


def link_rate(part):
    """What part comm measured between ranks, for the simulator."""
    path = os.path.join(part.options.out, f"comm-{part.options.ranks}.json")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        rates = [point["busbw_gb_s"] for point in json.load(file)["points"]
                 if point["op"] == "send-recv"]
    return [f"nvlink.gb_s={max(rates):.1f}"] if rates else []


def comparisons(part, size):
    """The first context of the first mix with all variants, then the others."""
    found = [Comparison(part, size, mix, context) for context in size.contexts for mix in MIXES]
    return [each for each in found if each.is_possible()]


def add_options(parser):
    parser.add_argument("--lengths", default="", help="folder of pretrain.json and prolong.json")


def main():
    with Part("disaggregation", __doc__, add_options) as part:
        size = FULL if part.options.size == "full" else SMALL
        cost = measure_cost(part, size)
        overrides = link_rate(part) + ([f"attention.grid={cost}"] if cost else [])
        for place, each in enumerate(comparisons(part, size)):
            if part.options.quick and place > 0:
                break
            for variant in each.variants(is_first=place == 0):
                training = each.training(variant, cost)
                if (cost is None and "attention_cost" in "".join(training.settings)) or \
                        not part.wanted(training.name, training.quick):
                    continue
                if each.samples is None:
                    each.make_samples(part.options.lengths)
                    training.samples = each.samples
                training.facts |= {"made_up": not part.options.lengths,
                                   **each.predict(variant, overrides)}
                part.train(training)
        return part.exit_code()


if __name__ == "__main__":
    sys.exit(main())
