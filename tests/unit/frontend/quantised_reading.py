"""Reads quantised weights in tests: of one module, or of a folder beside the same numbers stored plainly."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.quantised import read_weights
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.safetensors_file import open_safetensors_model


def read(tmp_path, method, tensors, **table):
    """Weights of a folder that holds tensors of one module, "m"."""
    save_file({f"m.{name}": t.contiguous() for name, t in tensors.items()}, tmp_path / "model.safetensors")
    config = QuantConfig(tmp_path / "config.json", method, table)
    return read_weights(open_safetensors_model(tmp_path), config)


def assert_decodes(folder, *, ulps=0):
    """A folder holds the numbers of its plain sibling; the checkpoint."""
    checkpoint = open_checkpoint(folder)
    for name, tensor in load_file(folder.parent / "plain/model.safetensors").items():
        weight = checkpoint.load(name)
        np.testing.assert_array_max_ulp(weight.to_f32(), tensor.float().numpy(), ulps)
        assert weight.format == checkpoint.format_of(name)
    return checkpoint


def assert_refused(folder, param, words):
    """Opening a folder, looking at it or loading that parameter ends in one line with these words."""

    def use():
        checkpoint = open_checkpoint(folder)
        checkpoint.params()
        checkpoint.load(param)

    with pytest.raises(CheckpointError, match=words) as caught:
        use()
    assert "\n" not in str(caught.value)
