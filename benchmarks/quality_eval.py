"""Perplexity and divergence of checkpoints, against the model that they were made of; resumable.

All compute through transformers in float32 on the numbers that our readers find in the files, so this
measures the weights alone. What the original predicts is kept as its last hidden states.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from quality_text import held_out
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from rusteeze.artifact.files import write_atomic
from rusteeze.config import CompileOptions
from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.source import key, resolve
from rusteeze.version import source_hash

Tensor = torch.Tensor


@dataclass
class Sums:
    """Over the predicted tokens of the first ``windows`` windows."""

    windows: int = 0
    tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    agreed: int = 0

    def add(self, truth: Prediction, logits: Tensor, ids: Tensor) -> None:
        """Logits [n, V] of what follows each of the first n tokens of a window."""
        total = logits.logsumexp(-1)
        self.loss += float((total - logits.gather(-1, ids[1:, None])[:, 0]).sum(dtype=torch.float64))
        expected = _dot(truth.probabilities, logits) - total
        self.divergence += float((truth.negentropy - expected).sum(dtype=torch.float64))
        self.agreed += int((truth.choice == logits.argmax(-1)).sum())
        self.tokens += len(logits)
        self.windows += 1

    @property
    def means(self) -> dict[str, float]:
        return {
            "perplexity": math.exp(self.loss / self.tokens),
            "kl": self.divergence / self.tokens, "top1": self.agreed / self.tokens,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Prediction:
    """Distributions [n, V], the mean log-probability of each [n], and the likeliest tokens [n]."""

    probabilities: Tensor
    negentropy: Tensor
    choice: Tensor


def prediction_of(logits: Tensor) -> Prediction:
    probabilities = logits.softmax(-1)
    negentropy = _dot(probabilities, logits) - logits.logsumexp(-1)
    return Prediction(probabilities, negentropy, logits.argmax(-1))


class Truth:
    """What the original predicts of each window. ``folder``, which is for this model alone, keeps its hidden states from
    run to run; those of another text are made anew."""

    def __init__(self, path: Path, windows: Tensor, folder: Path) -> None:
        self.windows, self.folder = windows, folder
        self.model = model_of(path)
        folder.mkdir(parents=True, exist_ok=True)

    def prediction(self, number: int) -> Prediction:
        file, ids = self.folder / f"{number:04d}.safetensors", self.windows[number]
        kept = load_file(file) if file.exists() else {}
        if "ids" not in kept or not torch.equal(kept["ids"], ids):
            hidden = self.model.get_decoder()(ids[None], use_cache=False).last_hidden_state[0, :-1]
            kept = {"hidden": hidden.contiguous(), "ids": ids}
            write_atomic(file, save(kept))
        return prediction_of(self._logits(kept["hidden"]))

    def _logits(self, hidden: Tensor) -> Tensor:
        """What the model itself makes of hidden states [n, K], head, scaling and cap: they take the place of what its
        decoder says of one token."""

        def replace(decoder: torch.nn.Module, given: object, output: ModelOutput) -> ModelOutput:
            output["last_hidden_state"] = hidden[None]
            return output

        with self.model.get_decoder().register_forward_hook(replace):
            logits: Tensor = self.model(self.windows[:1, :1], use_cache=False).logits[0]
        return logits


def evaluate(
    original: Path, found: Mapping[str, Path], tokens: int, folder: Path, until: float = math.inf
) -> dict[str, Sums]:  # fmt: skip
    """Sums by name, for as many windows as there is time for (time.monotonic() below ``until``). ``folder``
    keeps them: the same call goes on, unless a model, the text or our readers have changed meanwhile."""
    torch.set_float32_matmul_precision("highest")
    own = fingerprint(original)
    truth = Truth(original, held_out(open_checkpoint(original), tokens), folder / f"original.{own}")
    text = hashlib.sha256(truth.windows.numpy().tobytes()).hexdigest()
    files = {n: folder / f"{n}.{_short(own, fingerprint(p), text)}.json" for n, p in found.items()}
    sums = {n: Sums(**json.loads(f.read_text())) if f.exists() else Sums() for n, f in files.items()}
    models = {n: model_of(p) for n, p in found.items() if sums[n].windows < len(truth.windows)}
    with torch.inference_mode():
        for number, ids in enumerate(truth.windows):
            wanted = [name for name in models if sums[name].windows == number]
            if not wanted:
                continue
            if time.monotonic() > until:
                break
            print(f"window {number + 1} of {len(truth.windows)}", end="\r", file=sys.stderr, flush=True)
            expected = truth.prediction(number)
            for name in wanted:
                logits = models[name](ids[None], use_cache=False).logits[0, :-1]
                sums[name].add(expected, logits, ids)
                write_atomic(files[name], (json.dumps(asdict(sums[name])) + "\n").encode())
    return {name: s for name, s in sums.items() if s.windows == len(truth.windows)}


def fingerprint(path: Path) -> str:
    """Of a model's files, as far as a key of artifacts looks at them, and of what reads them."""
    return _short(key(resolve(path), CompileOptions(), source_hash(("frontend", "weights"))))


def _short(*facts: str) -> str:
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each pair of rows."""
    return (a[:, None] @ b[:, :, None])[:, 0, 0]


def model_of(path: Path) -> PreTrainedModel:
    """transformers' model, in float32, with the numbers that our readers find."""
    checkpoint = open_checkpoint(path)
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(checkpoint.load(name).to_f32()))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = partial(_linear, module.weight, module.bias)
    return model


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """In float32 by oneDNN, for the reason that rusteeze/quantize/products.py gives."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def weight_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
