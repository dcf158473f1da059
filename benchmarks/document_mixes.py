"""Batches of document lengths as DistCA's experiments make them, with a fixed seed.

Two mixes (arXiv 2510.18121, section 6.1, and its released scripts), from lists of lengths:

  pretrain  documents below 64K tokens: the first half of them; from 64K on: each 4 times; of all these
            10,000 drawn without replacement; every length times context / 64K
  prolong   documents below 64K: the first half; from 64K on: each 4 times, and 30 % of those set to
            the context's length; the long ones come first
  shuffled  prolong with its sequences in random order

Documents are laid one after the other into sequences of the context's length and cut at their ends.
"""

import json
import os
import random

LONG = 64 * 1024
MIXES = ("pretrain", "prolong", "shuffled")


def documents(lengths, mix, context, seed=0):
    """Returns the lengths of a mix before they are cut into sequences."""
    draw = random.Random(seed)
    short = [length for length in lengths if length < LONG]
    short = short[:len(short) // 2]
    long = [length for length in lengths if length >= LONG] * 4
    factor = context // LONG
    if mix == "pretrain":
        return [length * factor for length in draw.sample(short + long, 10000)]
    stretched = int(0.3 * len(long))
    return [LONG * factor] * stretched + long[stretched:] + short


def sequences(lengths, mix, context, seed=0):
    """Returns lists of document lengths that each add up to `context`."""
    result, current, room = [], [], context
    for length in documents(lengths, mix, context, seed):
        while length > 0:
            piece = min(length, room)
            current.append(piece)
            length -= piece
            room -= piece
            if room == 0:
                result.append(current)
                current, room = [], context
    if mix == "shuffled":
        random.Random(seed).shuffle(result)
    return result


def batches(folder, mix, context, tokens, count, seed=0):
    """Returns up to `count` batches of `tokens` tokens: lists of document lengths."""
    name = "pretrain" if mix == "pretrain" else "prolong"
    with open(os.path.join(folder, f"{name}.json"), encoding="utf-8") as file:
        lengths = json.load(file)
    if tokens % context != 0:
        raise ValueError(f"{tokens} tokens are no multiple of sequences of {context}")
    each = tokens // context
    found = sequences(lengths, mix, context, seed)
    return [[length for sequence in found[first:first + each] for length in sequence]
            for first in range(0, len(found) - each + 1, each)][:count]
