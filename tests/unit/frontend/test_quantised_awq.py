"""AWQ folders, against autoawq's own unpacking, and hostile ones."""

from __future__ import annotations

import pytest
import torch
from gguf_samples import tiny_model
from packed_samples import digest, samples, tensors_of
from quantised_folders import awq_packer, save_quantised
from quantised_reading import assert_decodes, assert_refused, read
from test_checkpoint import edit_weights

torch.set_num_threads(1)
TABLE = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
LAYER = "model.layers.0.mlp.up_proj"


def folder_of(tmp_path, **table):
    save_quantised(tiny_model("llama"), tmp_path, TABLE | table, awq_packer(32))
    return tmp_path / "quantised"


def test_what_autoawq_unpacks(tmp_path):
    (sample,) = samples("awq")
    weight = read(tmp_path, "awq", tensors_of(sample), group_size=32)["m.weight"]
    assert digest(weight.load()) == sample["weight_sha256"]
    assert weight.format == weight.load().format == "affine4g32m-f32"


def test_folder(tmp_path):
    checkpoint = assert_decodes(folder_of(tmp_path))
    assert checkpoint.format_of(f"{LAYER}.weight") == "affine4g32m-f32"


def _set(name, change):
    return lambda t: t.update({f"{LAYER}.{name}": change(t[f"{LAYER}.{name}"])})


HOSTILE = {
    "short codes": (_set("qweight", lambda t: t[:-1].clone()), "config and weights are of different"),
    "narrow zeros": (_set("qzeros", lambda t: t[:, :-1].clone()), "would fit"),
    "no zeros": (_set("qzeros", lambda t: t[:0].clone()), "has the shape"),
    "missing scales": (lambda t: t.pop(f"{LAYER}.scales"), "scales is missing"),
    "NaN scales": (_set("scales", lambda t: t * float("nan")), "not finite"),
    "codes of another type": (_set("qweight", lambda t: t.float()), "holds F32 instead of I32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors(name, tmp_path):
    edit, words = HOSTILE[name]
    folder = folder_of(tmp_path)
    edit_weights(folder, edit)
    assert_refused(folder, f"{LAYER}.weight", words)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"version": "gemv"}, r"\(awq, 4 bits, group 32\): the layout 'gemv' is not supported; pack it as gemm"),
        ({"version": ["x"]}, "layout"),
        ({"bits": 3}, r"3 bits are not supported; quantise to 4 bits"),
        ({"group_size": 0}, "contradicts the stated group"),
        ({"group_size": 16}, "2 groups for 64 columns"),
    ],
)
def test_hostile_configs(table, words, tmp_path):
    assert_refused(folder_of(tmp_path, **table), f"{LAYER}.weight", words)
