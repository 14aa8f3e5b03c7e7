"""bitsandbytes folders, against what the package itself packs and unpacks, and hostile ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf_samples import tiny_model
from quantised_folders import bitsandbytes_packer, save_quantised
from quantised_reading import assert_decodes, assert_refused, read
from test_checkpoint import edit_weights

bnb = pytest.importorskip("bitsandbytes.functional")
torch.set_num_threads(1)
TABLE = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("shape", "format"),
    [
        ((5, 128), "codebook4g64-f32"), ((7, 96), "codebook4g32-f32"), ((3, 208), "codebook4g16-f32"),
        ((6, 20), "f32"), ((300, 192), "codebook4g64-f32"),
    ],
)  # fmt: skip
def test_four_bits_of_any_shape(kind, nested, shape, format, tmp_path):
    torch.manual_seed(shape[0])
    pack = bitsandbytes_packer(kind, nested=nested)
    original = torch.randn(shape).numpy()
    parts, numbers = pack(original)
    tensors = {name[1:]: t for name, t in parts.items()}
    weight = read(tmp_path, "bitsandbytes", tensors)["m.weight"]
    assert weight.shape == shape
    assert weight.format == weight.load().format == format
    np.testing.assert_array_equal(weight.load().to_f32(), numbers)
    # half of the widest gap of the tables, times the largest magnitude
    assert np.abs(numbers - original).max() <= 0.17 * np.abs(original).max()


def test_int8_is_that_of_the_package_up_to_one_rounding(tmp_path):
    """It multiplies code by SCB by 1/127, we multiply SCB by 1/127 first."""
    parts, numbers = bitsandbytes_packer("int8")(torch.randn(9, 96).numpy())
    weight = read(tmp_path, "bitsandbytes", {name[1:]: t for name, t in parts.items()})["m.weight"]
    assert weight.format == weight.load().format == "affine8g32s-f32"
    np.testing.assert_array_max_ulp(weight.load().to_f32(), numbers, 1)
    exact = parts[".weight"].double() * parts[".SCB"].double()[:, None] / 127
    np.testing.assert_allclose(weight.load().to_f32(), exact.numpy(), rtol=3e-7)


def folder_of(tmp_path, kind="nf4", nested=True):
    save_quantised(tiny_model("llama"), tmp_path, TABLE, bitsandbytes_packer(kind, nested=nested))
    return tmp_path / "quantised"


@pytest.mark.parametrize(("kind", "format"), [("nf4", "codebook4g64-f32"), ("int8", "affine8g64s-f32")])
def test_folders(kind, format, tmp_path):
    checkpoint = assert_decodes(folder_of(tmp_path, kind), ulps=1 if kind == "int8" else 0)
    assert checkpoint.format_of(f"{LAYER}.weight") == format


STATE = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"


def _set(name, change):
    return lambda t: t.update({f"{LAYER}.{name}": change(t[f"{LAYER}.{name}"])})


def _state(**changes):
    def edit(tensors):
        state = json.loads(bytes(tensors[STATE].numpy())) | changes
        tensors[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return edit


HOSTILE = {
    "short codes": (_set("weight", lambda t: t[:-1].clone()), "bytes for"),
    "codes of another type": (_set("weight", lambda t: t.to(torch.int8)), "holds I8 instead of U8"),
    "an absurd shape": (_state(shape=[1 << 30, 1 << 30]), "bytes for"),
    "an empty shape": (_state(shape=[]), "bytes for"),
    "text for a shape": (_state(shape="wide"), "states shape wide"),
    "no block": (_state(blocksize=0), "states blocksize 0"),
    "another block": (_state(blocksize=32), "would fit"),
    "no inner block": (_state(nested_blocksize=-1), "states nested_blocksize -1"),
    "no offset": (_state(nested_offset=None), "states nested_offset None"),
    "NaN offset": (_state(nested_offset=float("nan")), "states nested_offset nan"),
    "NaN scales": (_set("weight.nested_absmax", lambda t: t * float("nan")), "not finite"),
    "a short table": (_set("weight.quant_map", lambda t: t[:8].clone()), "would fit"),
    "another table": (_set("weight.quant_map", lambda t: t + 1), "different tables"),
    "no JSON": (lambda t: t.update({STATE: torch.tensor([123], dtype=torch.uint8)}), "no sound JSON"),
    "long JSON": (lambda t: t.update({STATE: torch.zeros(1 << 15, dtype=torch.uint8)}), "too long"),
    "missing scales": (lambda t: t.pop(f"{LAYER}.weight.absmax"), "absmax is missing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_four_bit_tensors(name, tmp_path):
    edit, words = HOSTILE[name]
    folder = folder_of(tmp_path)
    edit_weights(folder, edit)
    assert_refused(folder, f"{LAYER}.weight", words)


HOSTILE_INT8 = {
    "short scales": (_set("SCB", lambda t: t[:-1].clone()), "would fit"),
    "NaN scales": (_set("SCB", lambda t: t * float("nan")), "not finite"),
    "a layout of GPUs": (_set("weight_format", lambda t: t + 2), "one kind of GPU"),
    "codes of another type": (_set("weight", lambda t: t.float()), "holds F32 instead of I8"),
}


@pytest.mark.parametrize("name", HOSTILE_INT8)
def test_hostile_int8_tensors(name, tmp_path):
    edit, words = HOSTILE_INT8[name]
    folder = folder_of(tmp_path, "int8")
    edit_weights(folder, edit)
    assert_refused(folder, f"{LAYER}.weight", words)
