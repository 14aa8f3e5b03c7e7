"""MXFP4 experts, against transformers' own dequantiser, and hostile ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantised_reading import read
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from rusteeze.frontend.checkpoint_errors import CheckpointError

torch.set_num_threads(1)


def drawn(shape, low=100, high=150):
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
    return {"p_blocks": blocks, "p_scales": torch.randint(low, high, shape, dtype=torch.uint8)}


@pytest.mark.parametrize("shape", [(3, 10, 2), (1, 7, 5), (4, 32, 1)])
def test_experts(shape, tmp_path):
    tensors = drawn(shape, 2, 250)
    weight = read(tmp_path, "mxfp4", tensors)["m.p"]
    wanted = convert_moe_packed_tensors(tensors["p_blocks"], tensors["p_scales"], dtype=torch.float32)
    experts, n, groups = shape
    assert weight.shape == weight.load().shape == (experts, groups * 32, n)
    assert weight.format == weight.load().format == "codebook4g32it-f32"
    np.testing.assert_array_equal(weight.load().to_f32(), wanted.numpy())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"p_blocks": torch.zeros(2, 4, 3, 8, dtype=torch.uint8)}, "blocks of 8 bytes"),
        ({"p_blocks": torch.zeros(2, 4, 48, dtype=torch.uint8)}, "has the shape"),
        ({"p_blocks": torch.zeros(2, 4, 3, 16)}, "holds F32"),
        ({"p_scales": torch.zeros(2, 4, 2, dtype=torch.uint8)}, "would fit"),
        ({"p_scales": torch.full((2, 4, 3), 255, dtype=torch.uint8)}, "not finite"),
    ],
)
def test_hostile_tensors(changes, words, tmp_path):
    def use():
        read(tmp_path, "mxfp4", drawn((2, 4, 3)) | changes)["m.p"].load()

    with pytest.raises(CheckpointError, match=words):
        use()


def test_missing_scales(tmp_path):
    weight = read(tmp_path, "mxfp4", {"p_blocks": drawn((2, 4, 3))["p_blocks"]})["m.p"]
    with pytest.raises(CheckpointError, match="p_scales is missing"):
        weight.load()
