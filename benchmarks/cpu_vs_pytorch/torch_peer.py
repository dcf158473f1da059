"""The peer's side of one run: trains a model in PyTorch and prints a JSON object with the seconds
and the loss of each step and the memory. run.py starts it; the job comes as JSON on standard input.
"""
import json
import resource
import struct
import sys
import time

import torch

from torch_models import LanguageModel

END_OF_DOCUMENT = 256


def read_batch(files, sequence):
    """The documents as the byte tokenizer makes them: [B, S], each ending with its end mark, which
    has no target."""
    tokens = torch.empty(len(files), sequence, dtype=torch.int64)
    for row, name in zip(tokens, files):
        with open(name, "rb") as file:
            row[:-1] = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        row[-1] = END_OF_DOCUMENT
    targets = torch.full_like(tokens, -100)
    targets[:, :-1] = tokens[:, 1:]
    return tokens, targets


def write_weights(model, name):
    """A safetensors file: the header's size, a JSON header, the tensors' bytes."""
    header, data = {}, []
    begin = 0
    for key, tensor in model.named_weights():
        data.append(tensor.detach().numpy().tobytes())
        header[key] = {"dtype": "F32", "shape": list(tensor.shape),
                       "data_offsets": [begin, begin + len(data[-1])]}
        begin += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(name, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def status_bytes(key):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak_memory():
    """Lets VmHWM start again, so that it does not count what torch.compile itself needed."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def make_optimizer(model, train):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": train["weight_decay"]}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=train["lr"], betas=(train["beta1"], train["beta2"]),
                             eps=train["eps"], fused=True)


def main():
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(1)
    model = LanguageModel(job["model"], job["sequence"], job["chunk"], job["recompute"])
    if job["mode"] == "weights":
        write_weights(model, job["weights"])
        print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}))
        return
    compute_loss = torch.compile(model) if job["mode"] == "compiled" else model
    optimizer = make_optimizer(model, job["train"])
    tokens, targets = read_batch(job["files"], job["sequence"])
    micro_batches = list(zip(tokens.split(job["micro_batch"]), targets.split(job["micro_batch"])))
    result = {"seconds": [], "losses": [], "base_bytes": status_bytes("VmRSS")}
    for step in range(job["warmup"] + job["steps"]):
        if step == job["warmup"]:
            forget_peak_memory()
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro_tokens, micro_targets in micro_batches:
            loss = compute_loss(micro_tokens, micro_targets) / len(micro_batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["train"]["clip_norm"])
        optimizer.step()
        result["seconds"].append(time.perf_counter() - begin)
        result["losses"].append(total)
    result["peak_bytes"] = status_bytes("VmHWM") or (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    result["torch"] = torch.__version__
    print(json.dumps(result))


if __name__ == "__main__":
    main()
