"""A run of `evenkeel train` that is measured: its settings, its command, and what it says of its steps."""

import json
import os
import re


def settings_of(prefix, folder, sequence, batch, steps, device, ranks_per_gpu=1):
    """Of a run that trains on the data set `prefix` and does nothing else. On CPUs a rank has one thread."""
    settings = [f"folder={folder}", f"data.train={prefix}", "data.validation=", "train.eval_every=0",
                f"data.sequence_length={sequence}", f"train.global_batch_size={batch}",
                f"train.steps={steps}", "train.warmup_steps=1", "checkpoint.every=-1",
                f"runtime.device={device}"]
    if device == "cpu":
        settings.append("runtime.threads=1")
    if ranks_per_gpu > 1:
        settings.append(f"runtime.ranks_per_gpu={ranks_per_gpu}")
    return settings


def mpirun(ranks, *command, bind="none", more=()):
    return [os.environ.get("MPIEXEC", "mpirun"), "--oversubscribe", "--bind-to", bind, *more, "-np",
            str(ranks), *command]


def train(evenkeel, ranks, config, settings, bind="none"):
    """The command. Of a setting that comes twice the later one holds."""
    sets = [argument for setting in settings for argument in ("--set", setting)]
    return mpirun(ranks, evenkeel, "train", "--config", config, *sets, bind=bind)


def rows_of(folder):
    """What metrics.jsonl says of each step."""
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if "step_ms" in row]


def vocabulary_of(config, settings=()):
    """The model's, from the settings or the config."""
    for setting in reversed(settings):
        if setting.startswith("model.vocab_size="):
            return int(setting.split("=")[1])
    with open(config, encoding="utf-8") as file:
        return int(re.search(r"^\s+vocab_size:\s*(\d+)", file.read(), re.M)[1])
