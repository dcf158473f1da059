"""Data sets whose samples are known: which documents make up which sample of which step.

A run lays the documents end to end in a drawn order, cuts them into samples and visits those in another
drawn order (runtime/data/sample_order.h). Both draws depend on the seed and the two numbers alone, so
documents can be put where the run will find them: `write_samples` makes a data set whose k-th sample is
the k-th of a list.
"""

import array
import json
import os
import random
import struct

import document_mixes

SEED = 1  # of the runs
SAMPLE_STREAM = 0x53414D50 << 32  # "SAMP"
DOCUMENT_ORDER, WINDOW_ORDER = 0, 1
MASK32 = 0xFFFFFFFF


def philox_bits(seed, stream, index):
    """64 random bits: the first two words of a block (runtime/base/philox.h)."""
    x = [index & MASK32, index >> 32, stream & MASK32, stream >> 32]
    k0, k1 = seed & MASK32, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(p1 >> 32) ^ x[1] ^ k0, p1 & MASK32, (p0 >> 32) ^ x[3] ^ k1, p0 & MASK32]
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return x[0] << 32 | x[1]


def drawn_order(purpose, count, seed=SEED):
    """The permutation that a run draws in its first epoch."""
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = philox_bits(seed, SAMPLE_STREAM + purpose, i) * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


def document_order(samples):
    """Lengths of documents in the order of a data set whose k-th sample is samples[k]."""
    window_of = drawn_order(WINDOW_ORDER, len(samples))
    in_window = [None] * len(samples)
    for sample, window in zip(samples, window_of):
        in_window[window] = sample
    stream = [length for sample in in_window for length in sample]
    lengths = [0] * len(stream)
    for place, document in enumerate(drawn_order(DOCUMENT_ORDER, len(stream))):
        lengths[document] = stream[place]
    return lengths


def write(prefix, lengths, vocabulary):
    """Writes documents of random tokens as Megatron lays them out."""
    wide = vocabulary > 65536
    draw = random.Random(1)
    count = min(1 << 20, max(lengths))
    block = array.array("i" if wide else "H", draw.choices(range(vocabulary), k=count))
    size = block.itemsize
    data = block.tobytes()
    offsets, at = [], 0
    with open(prefix + ".bin", "wb") as file:
        for length in lengths:
            offsets.append(at)
            at += size * length
            # Each begins elsewhere in the block.
            left, begin = length, draw.randrange(count)
            while left > 0:
                take = min(left, count - begin)
                file.write(data[size * begin:size * (begin + take)])
                left, begin = left - take, 0
    with open(prefix + ".idx", "wb") as file:
        n = len(lengths)
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4 if wide else 8, n, n + 1))
        for code, values in (("i", lengths), ("q", offsets), ("q", range(n + 1))):
            file.write(struct.pack(f"<{len(values)}{code}", *values))


def write_samples(prefix, samples, vocabulary):
    """`samples`: lists of document lengths that all add up to the same."""
    assert len({sum(sample) for sample in samples}) == 1
    write(prefix, document_order(samples), vocabulary)


def made_up_lengths(mix):
    """Lengths spread like those of pretraining or of long-context data, where there is no list."""
    draw = random.Random(mix)
    middle, spread, long = (3200, 0.8, 0.005) if mix == "pretrain" else (1900, 0.85, 0.003)
    return [int(65536 * (1 + draw.expovariate(4))) if draw.random() < long else
            max(16, int(draw.lognormvariate(0, spread) * middle)) for _ in range(60000)]


def mixed_samples(folder, mix, context, count):
    """`count` samples of `context` tokens of a mix: pretrain, or prolong in random order.

    Below 64K tokens they are samples of 64K scaled down. Without a folder of lists lengths are made up.
    """
    scale = max(1, document_mixes.LONG // context)
    if folder:
        with open(os.path.join(folder, f"{mix}.json"), encoding="utf-8") as file:
            lengths = json.load(file)
    else:
        lengths = made_up_lengths(mix)
    way = "pretrain" if mix == "pretrain" else "shuffled"
    found = document_mixes.sequences(lengths, way, context * scale)[:count]
    if len(found) < count:
        raise ValueError(f"{mix} has {len(found)} samples of {context} tokens, not {count}")
    samples = []
    for sample in found:
        ends, end = [0], 0
        for length in sample:
            end += length
            if end // scale > ends[-1]:
                ends.append(end // scale)
        samples.append([b - a for a, b in zip(ends, ends[1:])])
    return samples
