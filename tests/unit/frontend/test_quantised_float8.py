"""FP8 folders of every kind, against transformers' own dequantiser, and hostile ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf_samples import tiny_model
from quantised_folders import compressed_table, float8_packer, save_quantised
from quantised_reading import assert_decodes, assert_refused, read
from test_checkpoint import edit_weights
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from rusteeze.frontend.float8 import E4M3

torch.set_num_threads(1)
LAYER = "model.layers.0.mlp.up_proj"
INV, SCALE = ".weight_scale_inv", ".weight_scale"
BLOCKS = {"quant_method": "fp8", "weight_block_size": [48, 40]}
FLOAT = compressed_table("float-quantized", num_bits=8, type="float", strategy="channel")


def test_every_code():
    wanted = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(E4M3, wanted)


@pytest.mark.parametrize("shape", [(300, 264), (128, 128), (7, 513), (20, 260), (3, 140, 160), (3, 140, 100)])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_blocks_of_ragged_matrices(shape, scale_dtype, tmp_path):
    torch.manual_seed(0)
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = (torch.rand(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128)) + 0.1).to(scale_dtype)
    tensors = {"weight": codes, "weight_scale_inv": scale}
    weight = read(tmp_path, "fp8", tensors, weight_block_size=[128, 128])["m.weight"]
    wanted = _dequantize_fp8_weight(codes, scale.float(), [128, 128], torch.float32)
    np.testing.assert_array_equal(weight.load().to_f32(), wanted.numpy())
    group = math.gcd(shape[-1], 128) if shape[-1] > 128 else shape[-1]
    stays = group >= 8 and group % 4 == 0
    assert weight.format == weight.load().format == (f"float8g{group}-f32" if stays else "f32")


def test_one_scale_for_all(tmp_path):
    codes, scale = torch.randn(20, 30).to(torch.float8_e4m3fn), torch.tensor(0.3)
    weight = read(tmp_path, "fp8", {"weight": codes, "weight_scale_inv": scale})["m.weight"]
    wanted = _dequantize_fp8_weight(codes, scale, None, torch.float32)
    np.testing.assert_array_equal(weight.load().to_f32(), wanted.numpy())


FOLDERS = {
    "blocks": (BLOCKS, float8_packer(INV, 48, 40), "float8g8-f32"),
    "blocks, powers of two": (BLOCKS, float8_packer(INV, 48, 40, powers=True), "float8g8-f32"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, float8_packer(SCALE, 1, None), "float8g64-f32"),
    "channel": (FLOAT, float8_packer(SCALE, 1, None), "float8g64-f32"),
    "tensor": (FLOAT, float8_packer(SCALE, None, None), "float8g64-f32"),
    "compressed blocks": (
        compressed_table("float-quantized", num_bits=8, type="float", block_structure=[48, 40]),
        float8_packer(SCALE, 48, 40), "float8g8-f32",
    ),
    "compressed groups": (
        compressed_table("float-quantized", num_bits=8, type="float", group_size=32),
        float8_packer(SCALE, 1, 32), "float8g32-f32",
    ),
}  # fmt: skip


def folder_of(tmp_path, name="blocks", **table):
    stated, pack, _ = FOLDERS[name]
    save_quantised(tiny_model("llama"), tmp_path, stated | table, pack)
    return tmp_path / "quantised"


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, tmp_path):
    checkpoint = assert_decodes(folder_of(tmp_path, name))
    assert checkpoint.format_of(f"{LAYER}.weight") == FOLDERS[name][2]


def _set(name, change):
    return lambda t: t.update({LAYER + name: change(t[LAYER + name])})


NAN = torch.tensor([0x7F], dtype=torch.uint8).view(torch.float8_e4m3fn)
HOSTILE = {
    "packed floats of 4 bits": ("blocks", _set(".weight", lambda t: t.view(torch.int8)), "is I8"),
    "flat codes": ("blocks", _set(".weight", lambda t: t.flatten()), "supported are matrices of F8_E4M3"),
    "NaN codes": ("blocks", _set(".weight", lambda t: NAN.expand(t.shape).clone()), "holds a NaN"),
    "NaN scales": ("blocks", _set(INV, lambda t: t * float("nan")), "not finite"),
    "short scales": ("blocks", _set(INV, lambda t: t[:1].clone()), "would fit"),
    "large powers": (
        "blocks, powers of two",
        _set(INV, lambda t: torch.full(t.shape, 255, dtype=torch.uint8).view(torch.float8_e8m0fnu)), "beyond",
    ),
    "scales of no scheme": ("channel", _set(SCALE, lambda t: t[:5].clone()), "no stated scheme"),
    "short scales of rows": ("fbgemm", _set(SCALE, lambda t: t[:5].clone()), "would fit"),
    "no codes": ("fbgemm", lambda t: t.pop(f"{LAYER}.weight"), "weight is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tensors(case, tmp_path):
    name, edit, words = HOSTILE[case]
    folder = folder_of(tmp_path, name)
    edit_weights(folder, edit)
    assert_refused(folder, f"{LAYER}.weight", words)


@pytest.mark.parametrize("block", [0, [0, 128], [128], "x", [128.0, 128], [-1, 128]])
def test_hostile_blocks(block, tmp_path):
    folder = folder_of(tmp_path, weight_block_size=block)
    assert_refused(folder, f"{LAYER}.weight", "weight_block_size is")


def test_absurd_blocks_are_one_block(tmp_path):
    folder = folder_of(tmp_path, weight_block_size=[1 << 62, 1 << 62])
    assert_refused(folder, f"{LAYER}.weight", r"\[1, 1\] would fit")
