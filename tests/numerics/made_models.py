"""Tiny random models of any family as folders with a tokenizer, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from configs import tiny
from harness import make_config, random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.quantize.calibration import own_text, windows
from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.quantize import quantize_model

Tensor = torch.Tensor
LETTERS = 260
TEXT = own_text()[:8000]


def save_model(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A random model with a token for every byte, in ``folder``/model."""
    changes = {"vocab_size": LETTERS} | ({"q_lora_rank": 32} if name == "deepseek-v3" else {})  # 24 has no group
    model = random_model(make_config(tiny(name) | changes)).to(dtype)
    place = folder / "model"
    model.save_pretrained(place)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(["<pad>", "</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(place / "tokenizer.json"))
    (folder / "text.txt").write_text(TEXT)
    return place


def quantized(model: Path, method: str, **options: Any) -> Path:
    """The folder that a method makes of it, beside it."""
    out = model.parent / f"{method}-{len(list(model.parent.iterdir()))}"
    chosen = QuantizeOptions(**{"method": method, "group": 16, "tokens": 1920, "window": 48, **options})
    quantize_model(model, out, chosen, model.parent / "text.txt", lambda phase, share: None)
    return out


def later_text(folder: Path) -> list[np.ndarray]:
    """Token ids of sequences that follow the text that was calibrated on."""
    text = own_text()[len(TEXT) : 2 * len(TEXT)]
    return [ids.numpy() for ids in windows(open_checkpoint(folder), text, 480, 48)]


def numbers(folder: Path) -> dict[str, Tensor]:
    """All parameters f32, as our readers find them."""
    checkpoint = open_checkpoint(folder)
    return {name: torch.from_numpy(checkpoint.load(name).to_f32()) for name in checkpoint.params()}


def model_of(folder: Path, values: dict[str, Tensor]) -> Any:
    """transformers' eager model with these parameters."""
    model = random_model(open_checkpoint(folder).config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(values[name])
    return model
