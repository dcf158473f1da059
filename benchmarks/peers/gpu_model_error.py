"""Errors against float64 of whole models, ours and PyTorch's in bf16 from the same weights, from the
folder that `gpu_model_dump FOLDER` wrote. Exits 1 if the error of all our gradients together is more
than twice PyTorch's for one of the models.

    python3 gpu_model_error.py FOLDER [--json LINES] [--device cuda]

The models are the transcription in tests/golden/reference.py, one document at a time. The peer runs it
as a careful user of PyTorch would: fused norms, scaled_dot_product_attention, the cross-entropy and all
angles in float32, bf16 copies of float32 weights, gradients of the documents added up in float32. So
what differs is the rounding inside the layers. Errors are 2-norms relative to the exact 2-norm.
"""
import argparse
import contextlib
import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"))
import reference  # noqa: E402

LIMIT = 2.0


@contextlib.contextmanager
def fused_operations():
    """PyTorch's own kernels for the parts of the transcription that it has kernels for."""
    def rms_norm(x, eps, gain=None):
        return F.rms_norm(x, x.shape[-1:], gain, eps)

    def softmax_core(q, k, v):
        return F.scaled_dot_product_attention(*(x[None, None] for x in (q, k, v)), is_causal=True)[0, 0]

    replaced = {"rms_norm": rms_norm, "softmax_core": softmax_core, "silu": F.silu}
    kept = {name: getattr(reference, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(reference, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(reference, name, function)


def loss_and_gradients(config, weights, documents, dtype):
    """The mean loss and, by name, its gradients in float64. Angles (theta) are never rounded."""
    leaf = torch.promote_types(dtype, torch.float32)
    leaves = {name: w.to(leaf).requires_grad_() for name, w in weights.items()}
    valid = sum(int((targets >= 0).sum()) for _, targets in documents)
    total = 0.0
    for tokens, targets in documents:
        used = {name: w if name.endswith(".theta") else w.to(dtype) for name, w in leaves.items()}
        loss, _ = reference.document_loss(config, used, tokens, targets)
        (loss / valid).backward()
        total += loss.item()
    return total / valid, {name: w.grad.double() for name, w in leaves.items()}


def errors(gradients, exact):
    """Relative error of all gradients together; of the worst parameter; its name."""
    squares = {name: (gradients[name].double() - want).pow(2).sum().item() for name, want in exact.items()}
    norms = {name: want.pow(2).sum().item() for name, want in exact.items()}
    each = {name: (squares[name] / norms[name]) ** 0.5 for name in exact}
    worst = max(each, key=each.get)
    return (sum(squares.values()) / sum(norms.values())) ** 0.5, each[worst], worst


def compare(folder, device):
    config, batch = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "batch"))
    weights, ours = (load_file(str(folder / f"{name}.safetensors"), device=device)
                     for name in ("weights", "gradients"))
    for name, w in weights.items():
        if not torch.equal(w, w.bfloat16().float()):
            sys.exit(f"{folder}: bf16 does not hold {name}")
    tokens, targets = (torch.tensor(batch[name]).split(batch["lengths"]) for name in ("tokens", "targets"))
    documents = list(zip(tokens, targets))
    want_loss, exact = loss_and_gradients(config, weights, documents, torch.float64)
    with fused_operations():
        their_loss, theirs = loss_and_gradients(config, weights, documents, torch.bfloat16)
    result = {"model": folder.name, "loss": want_loss}
    for who, loss, gradients in (("ours", batch["loss"], ours), ("pytorch", their_loss, theirs)):
        total, worst, name = errors(gradients, exact)
        result[who] = {"loss": abs(loss - want_loss) / want_loss, "gradients": total, "worst": worst,
                       "worst_parameter": name}
    result["ratio"] = result["ours"]["gradients"] / result["pytorch"]["gradients"]
    # Not "<" turned round: NaN must fail.
    result["ok"] = result["ratio"] <= LIMIT
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--json", help="file that a line for every model is added to")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.folder.glob("*/batch.json"))
    if not folders:
        sys.exit(f"{args.folder}: no models in it; run gpu_model_dump first")
    results = []
    # The device of everything that the transcription makes.
    with torch.device(args.device):
        for folder in folders:
            results.append(compare(folder, args.device))
    print(f"{'model':<16} {'relative error of':<18} {'ours':>10} {'PyTorch':>10} {'ratio':>6}")
    for result in results:
        ours, theirs = result["ours"], result["pytorch"]
        for key, label in (("loss", "loss"), ("gradients", "all gradients"), ("worst", "worst gradient")):
            ratio = ours[key] / theirs[key] if theirs[key] else float("inf")
            print(f"{result['model']:<16} {label:<18} {ours[key]:>10.2e} {theirs[key]:>10.2e} {ratio:>6.2f}")
        print(f"{'':<16} worst: ours {ours['worst_parameter']}, PyTorch's {theirs['worst_parameter']}")
        if not result["ok"]:
            print(f"{'':<16} FAILED: our gradients err {result['ratio']:.2f} times as much, at most {LIMIT} allowed")
    if args.json:
        with open(args.json, "a") as lines:
            for result in results:
                lines.write(json.dumps(dict(result, section="error")) + "\n")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
