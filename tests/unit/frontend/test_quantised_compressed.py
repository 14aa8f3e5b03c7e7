"""Integer folders of compressed-tensors, against what the package itself packs and unpacks, and hostile ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf_samples import tiny_model
from quantised_folders import compressed_packer, compressed_table, pack_fields, save_quantised
from quantised_reading import assert_decodes, assert_refused, read
from test_checkpoint import edit_json, edit_weights

pytest.importorskip("compressed_tensors")
torch.set_num_threads(1)
LAYER = "model.layers.0.mlp.up_proj"


def folder_of(tmp_path, bits=4, group=32, *, symmetric=True, packed=True):
    table = compressed_table(
        "pack-quantized" if packed else "int-quantized", num_bits=bits, type="int", group_size=group,
        symmetric=symmetric, strategy="group" if group else "channel",
    )  # fmt: skip
    pack = compressed_packer(bits, group, symmetric=symmetric, packed=packed)
    save_quantised(tiny_model("llama"), tmp_path, table, pack)
    return tmp_path / "quantised"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, None])
def test_packed_folders(bits, symmetric, group, tmp_path):
    checkpoint = assert_decodes(folder_of(tmp_path, bits, group, symmetric=symmetric))
    kind = f"affine{bits}g{group or 64}" + ("s" if symmetric else "m")
    assert checkpoint.format_of(f"{LAYER}.weight") == f"{kind}-f32"


@pytest.mark.parametrize("symmetric", [True, False])
def test_folders_of_int8(symmetric, tmp_path):
    folder = folder_of(tmp_path, 8, None, symmetric=symmetric, packed=False)
    checkpoint = assert_decodes(folder)
    assert checkpoint.format_of(f"{LAYER}.weight") == f"affine8g64{'s' if symmetric else 'm'}-f32"


@pytest.mark.parametrize("bits", [3, 4])
def test_an_odd_width_and_scales_of_all_their_bits(bits, tmp_path):
    """scale * zero would round, so the weight becomes plain."""
    torch.manual_seed(0)
    weight = torch.randn(5, 44)
    parts, _ = compressed_packer(bits, None, symmetric=False)(weight.numpy())
    scale = parts[".weight_scale"] * (1 + torch.rand(5, 1) / 64)
    parts[".weight_scale"] = scale
    scheme = {"group": {"weights": {"num_bits": bits}}}
    tensors = {name[1:]: t for name, t in parts.items()}
    found = read(tmp_path, "compressed-tensors", tensors, config_groups=scheme)["m.weight"]
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    codes = unpack_from_int32(parts[".weight_packed"], bits, (5, 44))
    zero = unpack_from_int32(parts[".weight_zero_point"], bits, (5, 1), packed_dim=0)
    np.testing.assert_array_equal(found.load().to_f32(), ((codes.float() - zero.float()) * scale).numpy())
    assert found.format == "f32"


@pytest.mark.parametrize("used", [True, False])
def test_order_of_columns(used, tmp_path):
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(0, 16, (8, 64)), rng.random((8, 2), np.float32)
    index = rng.permutation(np.arange(64) // 32) if used else np.full(64, -1)
    tensors = {
        "weight_packed": pack_fields(codes, 4), "weight_scale": torch.from_numpy(scale),
        "weight_shape": torch.tensor([8, 64]), "weight_g_idx": torch.from_numpy(index.astype(np.int32)),
    }  # fmt: skip
    scheme = {"group": {"weights": {"num_bits": 4, "group_size": 32}}}
    found = read(tmp_path, "compressed-tensors", tensors, config_groups=scheme)["m.weight"]
    group = index if used else np.arange(64) // 32
    wanted = (codes - 8).astype(np.float32) * scale[:, group]
    np.testing.assert_array_equal(found.load().to_f32(), wanted)
    assert found.format == ("f32" if used else "affine4g32s-f32")
    ordered = found.find_sorted()
    assert (ordered is not None) == used
    if ordered is not None:
        assert ordered.load().format == ordered.format == "affine4g32s-f32"
        np.testing.assert_array_equal(ordered.load().to_f32(), wanted[:, ordered.columns])


def _set(name, change):
    return lambda t: t.update({f"{LAYER}.{name}": change(t[f"{LAYER}.{name}"])})


HOSTILE = {
    "short codes": (_set("weight_packed", lambda t: t[:, :-1].clone()), r"\(compressed-tensors, 4 bits, group 32\): .* holds no .* codes of the stated 4 bits"),
    "bytes": (_set("weight_packed", lambda t: t.to(torch.uint8)), "holds U8; save it as pack-quantized"),
    "an absurd shape": (_set("weight_shape", lambda t: t * (1 << 40)), "holds no"),
    "a negative shape": (_set("weight_shape", lambda t: -t), "holds no"),
    "no shape": (lambda t: t.pop(f"{LAYER}.weight_shape"), "weight_shape is missing"),
    "short scales": (_set("weight_scale", lambda t: t[:-1].clone()), "for 128 rows"),
    "narrow scales": (_set("weight_scale", lambda t: t.repeat(1, 2)), "4 groups for 64 columns"),
    "NaN scales": (_set("weight_scale", lambda t: t * float("nan")), "not finite"),
    "short zeros": (_set("weight_zero_point", lambda t: t[:-1].clone()), "would fit"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tensors(case, tmp_path):
    edit, words = HOSTILE[case]
    folder = folder_of(tmp_path, symmetric=False)
    edit_weights(folder, edit)
    assert_refused(folder, f"{LAYER}.weight", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "marlin-24"}, "'marlin-24' is not supported; save it as pack-quantized"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "rotations"),
        ({"config_groups": None}, "stated number of bits"),
        ({"config_groups": {"a": {"weights": {"num_bits": 0, "group_size": 0}}}}, "stated number of bits"),
        ({"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 0}}}}, "groups for .* columns"),
        ({"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": "x"}}}}, "groups for .* columns"),
    ],
)
def test_hostile_configs(changes, words, tmp_path):
    folder = folder_of(tmp_path)
    table = compressed_table("pack-quantized", num_bits=4, group_size=32)
    edit_json(folder / "config.json", quantization_config=table | changes)
    assert_refused(folder, f"{LAYER}.weight", words)
