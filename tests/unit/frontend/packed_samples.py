"""Weights that other projects packed (tools/make_packed_samples.py says how), for readers to unpack."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

SAMPLES = json.loads(Path(__file__).with_suffix(".json").read_text())


def samples(method):
    return [s for s in SAMPLES if s["method"] == method]


def tensors_of(sample):
    """Torch tensors by name, as they would lie in a file."""
    return {
        name: torch.from_numpy(
            np.frombuffer(base64.b64decode(t["base64"]), t["dtype"]).reshape(t["shape"]).copy()
        )
        for name, t in sample["tensors"].items()
    }


def digest(weight):
    """What a sample states of its weight, of a weight W[N, K] that was read."""
    values = np.ascontiguousarray(weight.to_f32().T) + np.float32(0)  # no negative zeros
    return hashlib.sha256(values.tobytes()).hexdigest()
