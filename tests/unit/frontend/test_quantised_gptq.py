"""GPTQ folders: every layout, against auto-gptq's own packing and unpacking, and hostile ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf_samples import tiny_model
from packed_samples import digest, samples, tensors_of
from quantised_folders import gptq_packer, save_quantised
from quantised_reading import assert_decodes, assert_refused, read
from test_checkpoint import edit_json, edit_weights

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.reference import reference_logits

torch.set_num_threads(1)
TABLE = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("sample", samples("gptq"), ids=lambda s: f"{s['bits']}-{s['act_order']}")
def test_what_auto_gptq_packs_and_unpacks(sample, tmp_path):
    weight = read(tmp_path, "gptq", tensors_of(sample), group_size=64)["m.weight"]
    assert digest(weight.load()) == sample["weight_sha256"]
    assert weight.load().format == weight.format
    assert weight.format == ("f32" if sample["act_order"] else f"affine{sample['bits']}g32m-f32")
    assert weight.shape == weight.load().shape == (64, 96)


def folder_of(tmp_path, packer, **table):
    model = tiny_model("llama")
    save_quantised(model, tmp_path, TABLE | table, packer)
    return tmp_path / "quantised"


CASES = [
    (bits, symmetric, version)
    for bits in (2, 3, 4, 8) for symmetric in (True, False) for version in (1, 2)
]  # fmt: skip


@pytest.mark.parametrize(("bits", "symmetric", "version"), CASES)
@pytest.mark.parametrize("act_order", [False, True])
def test_folders_decode_to_the_numbers_they_stand_for(bits, symmetric, version, act_order, tmp_path):
    packer = gptq_packer(bits, 32, symmetric=symmetric, act_order=act_order, version=version)
    folder = folder_of(tmp_path, packer, bits=bits, checkpoint_format="gptq" if version == 1 else "gptq_v2")
    checkpoint = assert_decodes(folder)
    kind = f"affine{bits}g32" + ("s-f16" if symmetric else "m-f32")
    assert checkpoint.format_of(f"{LAYER}.weight") == ("f32" if act_order else kind)
    ordered = checkpoint.sorted_columns(f"{LAYER}.weight")
    assert (ordered is not None) == act_order
    if ordered is not None:
        assert ordered.load().format == ordered.format == kind
        plain = checkpoint.load(f"{LAYER}.weight").to_f32()
        np.testing.assert_array_equal(ordered.load().to_f32(), plain[:, ordered.columns])
    assert checkpoint.format_of("model.embed_tokens.weight") == "f32"


def test_groups_in_another_order_are_no_reason_to_give_up_the_codes(tmp_path):
    sample = tensors_of(samples("gptq")[0])
    sample["g_idx"] = sample["g_idx"].flip(0)  # a run of 32, then one of 64
    assert read(tmp_path, "gptq", sample)["m.weight"].format == "affine2g32m-f32"


def test_runs_too_short_for_a_kernel_become_plain(tmp_path):
    sample = tensors_of(samples("gptq")[0])
    sample["g_idx"] = (torch.arange(96) // 8 % 2).int()
    weight = read(tmp_path, "gptq", sample)["m.weight"]
    assert weight.format == "f32"
    assert weight.find_sorted().format == "affine2g16m-f32"


def test_without_an_index_the_group_is_that_of_the_config(tmp_path):
    sample = samples("gptq")[4]
    tensors = tensors_of(sample)
    del tensors["g_idx"]
    assert digest(read(tmp_path, "gptq", tensors, group_size=64)["m.weight"].load()) == sample["weight_sha256"]
    with pytest.raises(CheckpointError, match="2 groups for 96 columns"):
        _ = read(tmp_path, "gptq", tensors, group_size=-1)["m.weight"].format


def test_zero_biases_that_packers_add_are_passed_over(tmp_path):
    folder = folder_of(tmp_path, gptq_packer(4, 32, symmetric=True, act_order=False))
    edit_weights(folder, lambda t: t.update({f"{LAYER}.bias": torch.zeros(128)}))
    assert f"{LAYER}.weight" in open_checkpoint(folder).params()
    edit_weights(folder, lambda t: t.update({f"{LAYER}.bias": torch.ones(128)}))
    with pytest.raises(CheckpointError, match="without it"):
        open_checkpoint(folder).params()


def _set(name, change):
    return lambda t: t.update({f"{LAYER}.{name}": change(t[f"{LAYER}.{name}"])})


HOSTILE = {
    "short codes": (_set("qweight", lambda t: t[:-1].clone()), "config and weights|would fit"),
    "no codes": (_set("qweight", lambda t: t[:0].clone()), r"has the shape \[0, 128\]"),
    "flat codes": (_set("qweight", lambda t: t.flatten()), "has the shape"),
    "codes of another type": (_set("qweight", lambda t: t.long()), "holds I64 instead of I32"),
    "narrow zeros": (_set("qzeros", lambda t: t[:, :-1].clone()), "no codes of 2, 3, 4 or 8 bits"),
    "missing zeros": (lambda t: t.pop(f"{LAYER}.qzeros"), "qzeros is missing"),
    "missing scales": (lambda t: t.pop(f"{LAYER}.scales"), "scales is missing"),
    "short scales": (_set("scales", lambda t: t[:1].clone()), "would fit"),
    "NaN scales": (_set("scales", lambda t: t * float("nan")), "not finite"),
    "endless scales": (_set("scales", lambda t: t / 0), "not finite"),
    "an index too large": (_set("g_idx", lambda t: t + 1), "outside of the 2 stored"),
    "an index below 0": (_set("g_idx", lambda t: t - 1), "outside of the 2 stored"),
    "a short index": (_set("g_idx", lambda t: t[:-1].clone()), "would fit"),
    "both forms": (lambda t: t.update({f"{LAYER}.weight": torch.zeros(128, 64)}), "plainly and quantised"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors(name, tmp_path):
    edit, words = HOSTILE[name]
    folder = folder_of(tmp_path, gptq_packer(4, 32, symmetric=True, act_order=False))
    edit_weights(folder, edit)
    assert_refused(folder, f"{LAYER}.weight", words)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"checkpoint_format": "marlin"}, r"\(gptq, 4 bits, group 32\): the packing 'marlin' .* gptq_v2"),
        ({"checkpoint_format": ["x"]}, "packing"),
        ({"is_marlin_format": True, "desc_act": True}, "act-order"),
        ({"quant_method": "nonesuch"}, "nonesuch.*this method is not supported; supported are GGUF files and gptq"),
        ({"quant_method": 4}, "without quant_method"),
        ({"quant_method": "a\nb" * 99}, "a b.*this method is not supported"),
        ({"bits": "\n" * 9, "group_size": [1] * 999, "checkpoint_format": "z\n"}, "packing"),
    ],
)
def test_hostile_configs(table, words, tmp_path):
    folder = folder_of(tmp_path, gptq_packer(4, 32, symmetric=True, act_order=False), **table)
    assert_refused(folder, f"{LAYER}.weight", words)


def test_long_and_broken_names_of_tensors(tmp_path):
    with pytest.raises(CheckpointError, match="qzeros is missing") as caught:
        read(tmp_path, "gptq", {"x\ny" * 1000 + ".qweight": torch.zeros(4, 32, dtype=torch.int32)})
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)


def test_no_index_for_act_order_and_absurd_groups(tmp_path):
    folder = folder_of(tmp_path, gptq_packer(4, 32, symmetric=True, act_order=False))
    edit_weights(folder, lambda t: t.pop(f"{LAYER}.g_idx"))
    for changes, words in (
        ({"desc_act": True}, "act-order is unknown"), ({"group_size": 0}, "contradicts"),
        ({"group_size": "x"}, "contradicts"), ({"group_size": 10**30}, "contradicts"),
    ):  # fmt: skip
        edit_json(folder / "config.json", quantization_config=TABLE | changes)
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(folder).load(f"{LAYER}.weight")


def test_what_transformers_cannot_load_here_is_not_compared(tmp_path, monkeypatch):
    def from_pretrained(*args, **kwargs):
        raise ImportError("Loading a GPTQ quantized model\nrequires optimum")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match=r"cannot be compared: .*\(Loading a GPTQ .* requires optimum\)"):
        reference_logits(tmp_path, [1, 2])
