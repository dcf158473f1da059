#!/usr/bin/env python3
"""Throughput of layouts: strong and weak scaling of a Llama of 953 M parameters and of Llama 3 8B.

    strong  the same step on more GPUs: speed beside one GPU
    weak    as many tokens a GPU: tokens/s a GPU beside one GPU

On CPU ranks of one thread, at full size, the quickstart's model in every form. The first losses of runs
that train the same step have to be equal.
"""

import dataclasses
import sys

from part import Part, Training

FORMS = ("ulysses", "ring", "gather")


@dataclasses.dataclass
class Model:
    label: str
    config: str
    short: int  # tokens of a sample, for all but cp
    long: int   # for cp
    settings: list = dataclasses.field(default_factory=list)

    def name(self, tokens):
        return f"{self.label} {tokens // 1024}K" if tokens >= 1024 else f"{self.label} {tokens}"


FULL = (Model("1b", "configs/llama_1b.yaml", 8192, 32768),
        Model("8b", "configs/llama3_8b.yaml", 8192, 32768,
              ["model.max_position_embeddings=32768"]))
# With lightning and softmax layers.
QUICKSTART = Model("quickstart", "configs/quickstart.yaml", 8192, 8192)
# As many layers as pipelines of 8 with two virtual stages need.
TINY = ["model.num_layers=16", "model.hidden_size=128", "model.intermediate_size=192", "model.num_heads=8",
        "model.vocab_size=264"]
SMALL = (Model("tiny", "configs/tiny_llama.yaml", 128, 256, TINY + ["model.num_kv_heads=8"]),
         Model("tiny gqa", "configs/tiny_llama.yaml", 128, 256, TINY + ["model.num_kv_heads=2"]))


def case(model, ranks, sequence, batch, layout, text, tables, quick=False, micro=1):
    name = f"{model.name(sequence)} x {batch}, {text}"
    return Training(name, ranks, model.config, sequence, batch,
                    [*model.settings, *(f"parallel.{setting}" for setting in layout),
                     f"train.micro_batch_size={micro}"], quick=quick, facts={"tables": tables})


def one_gpu(model, sequence, batch, tables, micro=1):
    return case(model, 1, sequence, batch, [], "1 GPU", tables, quick=True, micro=micro)


def short_cases(model, n, on_gpus):
    """Four samples a GPU: dp, ZeRO, tp and pp. The most important first."""
    batch, tables = 4 * n, ["strong"]
    on = lambda *a, **k: case(model, n, model.short, batch, *a, **k)
    cases = [
        one_gpu(model, model.short, batch, tables, micro=2),
        on([f"dp={n}"], f"dp {n}", ["strong", "weak"], quick=True, micro=2),
        on([f"tp={n}"], f"tp {n}", tables, quick=True, micro=2),
        on([f"pp={n}", "virtual_stages=2"], f"pp {n}, 2 virtual stages", tables, quick=True),
        on([f"dp={n}", "zero=3"], f"dp {n}, ZeRO 3", tables, micro=2),
        on([f"dp={n}", "zero=1"], f"dp {n}, ZeRO 1", tables, micro=2),
    ]
    if n > 2:
        cases.append(on([f"dp={n // 2}", "tp=2"], f"dp {n // 2}, tp 2", tables, micro=2))
    if on_gpus:
        cases.append(on([f"tp={n}", "tp_transport=copy_engines"], f"tp {n}, copy engines", tables,
                        micro=2))
    cases += [
        on([f"pp={n}"], f"pp {n}", tables),
        on([f"dp={n}", "zero=2"], f"dp {n}, ZeRO 2", tables, micro=2),
        one_gpu(model, model.short, 4, ["weak"], micro=2),
    ]
    return cases


def long_cases(model, n):
    """Four long samples over cp, and one that grows with the GPUs."""
    tables = ["strong"]
    strong = [one_gpu(model, model.long, 4, tables)]
    strong += [case(model, n, model.long, 4, [f"cp={n}", f"attention={form}"], f"cp {n}, {form}",
                    tables, quick=form == "ulysses") for form in FORMS]
    weak = [one_gpu(model, model.long, 1, ["weak"])]
    weak += [case(model, n, n * model.long, 1, [f"cp={n}", f"attention={form}"],
                  f"cp {n}, {form}", ["weak"]) for form in FORMS]
    return strong, weak


def fewer_gpus(model, n):
    """The same steps, and as much a GPU, on fewer than n GPUs."""
    cases = []
    for m in (m for m in (2, 4) if m < n):
        cases.append(case(model, m, model.short, 4 * m, [f"dp={m}"], f"dp {m}", ["weak"], micro=2))
        cases += [case(model, m, model.short, 4 * n, [f"{way}={m}"], f"{way} {m}", ["strong"],
                       micro=1 if way == "pp" else 2) for way in ("dp", "tp", "pp")]
        for form in FORMS:
            cases.append(case(model, m, model.long, 4, [f"cp={m}", f"attention={form}"],
                              f"cp {m}, {form}", ["strong"]))
            cases.append(case(model, m, m * model.long, 1, [f"cp={m}", f"attention={form}"],
                              f"cp {m}, {form}", ["weak"]))
    return cases


def large_cases(model, n):
    """A model that needs several GPUs: there is no single one to compare with."""
    tables = ["large"]
    on = lambda *a, **k: case(model, n, model.short, n, *a, **k)
    cases = [on([f"tp={n}"], f"tp {n}", tables, quick=True),
             on([f"dp={n}", "zero=3"], f"dp {n}, ZeRO 3", tables, quick=True),
             on([f"pp={n}"], f"pp {n}", tables)]
    if n > 2:
        cases.append(on(["tp=2", f"pp={n // 2}"], f"tp 2, pp {n // 2}", tables))
        cases.append(on(["tp=2", f"dp={n // 2}", "zero=3"], f"tp 2, dp {n // 2}, ZeRO 3", tables))
        for form in FORMS:
            cases.append(case(model, n, model.long, 2,
                              ["tp=2", f"cp={n // 2}", "zero=3", f"attention={form}"],
                              f"tp 2, cp {n // 2}, {form}, ZeRO 3", tables))
    return cases


def cpu_cases(model, n):
    """The same eight samples in every form."""
    on = lambda ranks, layout, text, **k: case(model, ranks, model.short, 8, layout, text, ["strong"], **k)
    return [
        on(1, [], "1 rank", quick=True),
        on(n, [f"dp={n}"], f"dp {n}", quick=True),
        on(n, [f"dp={n}", "zero=1"], f"dp {n}, ZeRO 1"),
        on(n, [f"dp={n}", "zero=3"], f"dp {n}, ZeRO 3"),
        on(n, [f"tp={n}"], f"tp {n}", quick=True),
        on(n, [f"cp={n}"], f"cp {n}, gather", quick=True),
        on(n, [f"cp={n}", "attention=ring", "linear_attention=scan"], f"cp {n}, ring and scan"),
        on(n, [f"cp={n}", "attention=ulysses"], f"cp {n}, ulysses"),
        on(n, [f"pp={n}"], f"pp {n}", quick=True),
    ]


def gpu_cases(models, n, on_gpus):
    base, large = models
    short, big = short_cases(base, n, on_gpus), large_cases(large, n)
    strong, weak = long_cases(base, n)
    return [*short[:4], *strong[:2], *big[:2], *short[4:7], *strong[2:], *big[2:5], *short[7:],
            *weak, *big[5:], *fewer_gpus(base, n)]


def check_losses(part, lines):
    """Of the runs of one step the same loss before the first update."""
    bound = 2e-3 if part.options.device == "cuda" else 1e-5
    first = {}
    for line in lines:
        step = (line["config"], line["sequence"], line["batch"],
                tuple(s for s in line["settings"] if s.startswith("model.")))
        want = first.setdefault(step, line)["first_loss"]
        if abs(line["first_loss"] - want) > bound * want:
            part.fail(f"{line['case']}: loss", f"{line['first_loss']} where "
                      f"{first[step]['case']} has {want}")


def main():
    with Part("layouts", __doc__) as part:
        n, on_gpus = part.options.ranks, part.options.device == "cuda"
        is_full = part.options.size == "full"
        if is_full and not on_gpus:
            cases = cpu_cases(QUICKSTART, n)
        else:
            cases = gpu_cases(FULL if is_full else SMALL, n, on_gpus)
        lines = list(part.done)
        for each in cases:
            line = part.train(each)
            if line and "first_loss" in line:
                lines.append(line)
        check_losses(part, [line for line in lines if "first_loss" in line])
        return part.exit_code()


if __name__ == "__main__":
    sys.exit(main())
