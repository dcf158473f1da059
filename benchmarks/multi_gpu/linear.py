#!/usr/bin/env python3
"""TransNormerLLM 1B with its tokens spread over all GPUs: tokens/s a GPU while one sequence grows.

A step has the same number of tokens until a single sequence has more. States are exchanged by LASP-2's
gather or ZeCO's scan; a sequence of one GPU's share of tokens on one GPU is what to compare with.
"""

import sys

from part import Part, Training

# Config, tokens of the shortest sequence, tokens of a step for each GPU, and most of them.
FULL = ("configs/transnormerllm_1b.yaml", 32768, 131072, 524288)
SMALL = ("configs/tiny_transnormerllm.yaml", 256, 512, 2048)


def label(tokens):
    for size, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= size:
            return f"{tokens / size:g}{unit}"
    return str(tokens)


def case(config, ranks, form, tokens, step_tokens, quick=False):
    batch = max(1, step_tokens // tokens)
    settings = [f"parallel.cp={ranks}", f"parallel.linear_attention={form}"] if ranks > 1 else []
    layout = f"cp {ranks}, {form}" if ranks > 1 else "1 GPU"
    return Training(f"{label(tokens)} x {batch}, {layout}", ranks, config, tokens, batch, settings,
                    steps=3 if tokens * batch <= 4 * step_tokens else 2, quick=quick,
                    facts={"form": form if ranks > 1 else "-"})


def all_cases(size, n):
    config, shortest, each, most = size
    step = n * each
    # 32K, 128K, 512K and so on, then the longest, and those in between.
    lengths = [shortest << i for i in range(40) if shortest << i <= n * most]
    order = [*lengths[::2], *lengths[1::2]]
    if lengths[-1] not in lengths[::2]:
        order = [*lengths[::2], lengths[-1], *lengths[1:-1:2]]
    ends = {lengths[0], lengths[-1]}
    cases = [case(config, 1, "", shortest, each, quick=True)]
    cases += [case(config, n, form, tokens, step, quick=tokens in ends)
              for tokens in order for form in ("gather", "scan")]
    cases += [case(config, 1, "", each, each), case(config, 1, "", most, each)]
    for m in (m for m in (2, 4) if m < n):
        cases += [case(config, m, form, m * tokens, m * each)
                  for tokens in (each, most) for form in ("gather", "scan")]
    return cases


def main():
    with Part("linear", __doc__) as part:
        size = FULL if part.options.size == "full" else SMALL
        for each in all_cases(size, part.options.ranks):
            part.train(each)
        return part.exit_code()


if __name__ == "__main__":
    sys.exit(main())
