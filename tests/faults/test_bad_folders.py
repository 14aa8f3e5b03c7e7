"""Model folders with something wrong in them: compile says what, and makes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import edit_json, refused, refused_to_compile, rusteeze
from safetensors.torch import load_file, save_file

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

# Text or bytes of a config.json, and a word of what must be said.
BAD_CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "half": ('{"model_type":', "no sound JSON"),
    "empty": ("", "no sound JSON"),
    "not UTF-8": (b"\xff\xfe\0", "no sound JSON"),
    "endless": ("[" * 200_000, "no sound JSON"),
    "list": ("[]", "no object"),
    "no model type": ('{"hidden_size": 4}', "states no model_type"),
    "a number for a type": ('{"model_type": 7}', "states no model_type"),
    "unknown type": ('{"model_type": "nonesuch"}', "'nonesuch', which is not understood"),
    "an encoder": ('{"model_type": "t5"}', "T5Config"),
    "code of its own": (
        '{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}', "'x', which is not understood",
    ),
}  # fmt: skip

# Values that contradict the weights or make no sense, and a word of what must be said.
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "more layers": ({"num_hidden_layers": 3}, "lacks 9 weights"),
    "fewer layers": ({"num_hidden_layers": 1}, "makes a model without it"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
    "endless layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
    "more layers than tensors": ({"num_hidden_layers": 999}, "states 999 layers"),
    "wider": ({"hidden_size": 64}, "of different models"),
    "narrower inside": ({"intermediate_size": 40}, "of different models"),
    "other heads": ({"num_key_value_heads": 4}, "of different models"),
    "other vocabulary": ({"vocab_size": 300}, "of different models"),
    "text for a number": ({"hidden_size": "large"}, "hidden_size"),
    "no heads": ({"num_attention_heads": 0}, "not understood"),
    "no head width": ({"head_dim": 0}, "builds no model"),
    "too wide to count": ({"hidden_size": 4 << 60}, "builds no model"),
    "negative length": ({"max_position_embeddings": -1}, "max_position_embeddings -1"),
    "unknown activation": ({"hidden_act": "nonesuch"}, "nonesuch"),
    "unknown rotation": ({"rope_parameters": {"rope_type": "nonesuch", "rope_theta": 1.0}}, "nonesuch"),
    "quantised": ({"quantization_config": {"quant_method": "hqq"}}, "hqq): this method is not supported"),
}  # fmt: skip

BAD_INDEXES: dict[str, tuple[str, str]] = {
    "half": ('{"weight_map": {"a', "no sound JSON"),
    "without a map": ("{}", "no weight_map"),
    "missing shard": ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "is missing"),
    "names itself": (f'{{"weight_map": {{"a": "{INDEX}"}}}}', "no plain file name"),
    "leads out": ('{"weight_map": {"a": "../../secret.safetensors"}}', "no plain file name"),
    "tensor elsewhere": ('{"weight_map": {"a": "shard.safetensors"}}', "lacks a"),
}


def test_the_sound_folder_compiles(sound_artifact: Path) -> None:
    assert rusteeze("generate", sound_artifact, "-p", "x", "--max-tokens", "2").exit_code == 0


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_is_none(name: str, folder: Path, out: Path) -> None:
    content, words = BAD_CONFIGS[name]
    (folder / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refused_to_compile(folder, out)
    assert words in refused("generate", folder, "-p", "x")
    (folder / WEIGHTS).unlink()
    assert words in refused("validate", folder)


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_config_of_another_model(name: str, folder: Path, out: Path) -> None:
    changes, words = BAD_VALUES[name]
    edit_json(folder / CONFIG, **changes)
    assert words in refused_to_compile(folder, out)


@pytest.mark.parametrize(
    "name", ["no layers", "endless layers", "negative length", "unknown activation"]
)
def test_a_lone_config_that_makes_no_sense(name: str, folder: Path) -> None:
    changes, words = BAD_VALUES[name]
    edit_json(folder / CONFIG, **changes)
    assert words in refused("validate", folder / CONFIG)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_cut_weights(share: float, folder: Path, out: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])
    assert WEIGHTS in refused_to_compile(folder, out)


@pytest.mark.parametrize(
    ("start", "patch"),
    [
        (0, b"\xff" * 8),
        (0, b"\x01" + b"\0" * 7),
        (8, b"\xff" * 40),
        (8, b'{"a":[],'),
        (20, b"9" * 4),
    ],
)
def test_weights_with_a_broken_header(start: int, patch: bytes, folder: Path, out: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[start : start + len(patch)] = patch
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refused_to_compile(folder, out)


def test_weights_with_something_behind(folder: Path, out: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert "download it again" in refused_to_compile(folder, out)


def test_a_tensor_of_another_type(folder: Path, out: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    save_file(tensors, folder / WEIGHTS)
    assert "model.norm.weight as I32" in refused_to_compile(folder, out)


def test_no_weights(folder: Path, out: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "save the model as safetensors" in refused_to_compile(folder, out)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "convert them to safetensors" in refused_to_compile(folder, out)


@pytest.mark.parametrize("name", BAD_INDEXES)
def test_an_index_that_leads_nowhere(name: str, folder: Path, out: Path) -> None:
    content, words = BAD_INDEXES[name]
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    (folder / INDEX).write_text(content)
    assert words in refused_to_compile(folder, out)


def test_links_in_a_circle(folder: Path, out: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    (folder / "shard.safetensors").symlink_to("shard.safetensors")
    assert "shard.safetensors is missing" in refused_to_compile(folder, out)
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to(INDEX)
    assert "neither" in refused_to_compile(folder, out)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": 3}', "\0"])
def test_a_broken_tokenizer(content: str, folder: Path, out: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "tokenizer" in refused_to_compile(folder, out)


def test_no_tokenizer(folder: Path, out: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in refused_to_compile(folder, out)


def test_more_positions_than_the_model_was_made_for(folder: Path, out: Path) -> None:
    message = refused("compile", folder, "-o", out, "--max-model-len", "65")
    assert "made for 64 positions" in message
    assert not out.exists()
