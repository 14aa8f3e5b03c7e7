"""Perplexity and divergence of quantised folders, against the model that they were made of.

    .venv/bin/python benchmarks/quantised_quality.py MODEL FOLDER ... [--tokens 50000] [--json FILE]
    .venv/bin/python benchmarks/quantised_quality.py --text calibration.txt

All compute through transformers on the numbers that our readers find in the files, so this measures the weights
alone: float32, with products whose operands are rounded to bf16 (the original's too; ``--exact``: not rounded). The text is Python's language reference (pydoc_data.topics), in windows of 512. ``--text``
writes a text that shares nothing with it, to calibrate on: the descriptions of the installed packages.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from rusteeze.frontend.checkpoint import Checkpoint, open_checkpoint
from rusteeze.quantize.calibration import own_text

WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    if options.text:
        options.text.write_text(package_descriptions(), encoding="utf-8")
        return
    torch.set_float32_matmul_precision("highest" if options.exact else "medium")
    rows = list(measure(options.paths, options.tokens))
    for row in rows:
        print(json.dumps(row))
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.write_text(json.dumps([*known, *rows], indent=1) + "\n")


def measure(paths: list[Path], tokens: int) -> Iterator[dict[str, Any]]:
    """A row for each path; the first is what the others are compared with."""
    original = open_checkpoint(paths[0])
    texts = windows(original, tokens)
    models = [model_of(path) for path in paths]
    sums = [[0.0, 0.0, 0] for _ in models]
    for number, ids in enumerate(texts):
        print(f"window {number + 1} of {len(texts)}", end="\r", file=sys.stderr, flush=True)
        target = ids[1:, None]
        truth: torch.Tensor | None = None
        for model, total in zip(models, sums, strict=True):
            with torch.inference_mode():
                found = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            truth = found if truth is None else truth
            total[0] -= float(found.gather(-1, target).double().sum())
            total[1] += divergence(truth, found)
            total[2] += int((truth.argmax(-1) == found.argmax(-1)).sum())
    count = texts.numel() - len(texts)
    for path, (loss, apart, agreed) in zip(paths, sums, strict=True):
        yield {
            "model": path.name, "bytes": weight_bytes(path), "tokens": count,
            "perplexity": math.exp(loss / count), "kl": apart / count, "top1": agreed / count,
        }  # fmt: skip


def divergence(truth: torch.Tensor, found: torch.Tensor) -> float:
    """The sum over rows of the divergence of two log-distributions, a few rows at a time: they are wide."""
    pairs = zip(truth.split(32), found.split(32), strict=True)
    return sum(float((a.exp() * (a - b)).sum(dtype=torch.float64)) for a, b in pairs)


def windows(checkpoint: Checkpoint, tokens: int) -> torch.Tensor:
    """Token ids [n, WINDOW] of the held-out text, at least ``tokens`` of them to predict."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(Path(folder))
        ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(own_text(), add_special_tokens=False).ids
    count = -(-tokens // (WINDOW - 1))
    assert len(ids) >= count * WINDOW, f"the text has only {len(ids)} tokens"
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def model_of(path: Path) -> PreTrainedModel:
    """transformers' model, in float32, with the numbers that our readers find."""
    checkpoint = open_checkpoint(path)
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(checkpoint.load(name).to_f32()))
    return model


def weight_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def package_descriptions() -> str:
    """The long descriptions of all installed packages, by name."""
    found = {d.metadata["Name"]: d.metadata.get_payload() for d in distributions()}
    return "\n\n".join(str(found[name]) for name in sorted(found) if found[name])


if __name__ == "__main__":
    main()
