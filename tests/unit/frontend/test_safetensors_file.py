from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.safetensors_file import INDEX, open_safetensors, open_safetensors_model


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return path

    return write


def test_reads_what_the_package_writes(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.randn(2, 2).half(),
        "d": torch.tensor(1.5), "e": torch.zeros(0, 4),
    }  # fmt: skip
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = open_safetensors(tmp_path / "m.safetensors")
    assert set(file.entries) == set(tensors)
    for name, tensor in tensors.items():
        weight = file.load(name)
        np.testing.assert_array_equal(weight.to_f32(), tensor.float().numpy())
        assert weight.shape == tuple(tensor.shape)
        assert weight.format == file.format_of(name)
        assert np.shares_memory(weight.values, file.bytes) or not weight.values.size


def test_other_element_types_are_named(tmp_path):
    save_file({"mask": torch.ones(4, dtype=torch.bool)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="mask as BOOL"):
        open_safetensors(tmp_path / "m.safetensors").load("mask")


NESTED = b'{"a":' + b"[" * 100_000
BAD = {
    "empty": (b"", "cannot be opened"),
    "short": (b"\x01\0\0", "ends inside its header"),
    "huge header": (raw({}, length=(1 << 64) - 1), "ends inside its header"),
    "header past the end": (raw({}, length=1000), "ends inside its header"),
    "no text": (raw(b"\xff\xff"), "no sound JSON"),
    "no JSON": (raw(b"{]"), "no sound JSON"),
    "nested": (raw(NESTED), "no sound JSON"),
    "a list": (raw(b"[1]"), "no object"),
    "same name twice": (raw(b'{"a":1,"a":2}'), "twice"),
    "no description": (raw({"a": 5}), "'a' in no known way"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "no known way"),
    "text as shape": (raw({"a": {**entry(), "shape": "22"}}), "no known way"),
    "negative axis": (raw({"a": entry(shape=(-2,))}, bytes(8)), "no known way"),
    "fraction": (raw({"a": entry(shape=(2.0,))}, bytes(8)), "no known way"),
    "truth as axis": (raw({"a": entry(shape=(True, 2))}, bytes(8)), "no known way"),
    "many axes": (raw({"a": entry(shape=(1,) * 40)}, bytes(8)), "no known way"),
    "three offsets": (raw({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "no known way"),
    "unknown type": (raw({"a": entry(dtype="F31")}, bytes(8)), "unknown element type"),
    "wrong size": (raw({"a": entry(shape=(3,))}, bytes(8)), "gives 'a' 8 bytes"),
    "huge shape": (raw({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(8)), "gives 'a' 8 bytes"),
    "reversed offsets": (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "gives 'a' -8 bytes"),
    "outside": (raw({"a": entry(offsets=(8, 16))}, bytes(8)), "gap or an overlap"),
    "short data": (raw({"a": entry()}, bytes(7)), "header wants"),
    "long data": (raw({"a": entry()}, bytes(9)), "header wants"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "gap or an overlap"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_one_line(case, written):
    content, words = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(written(content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


SOUND = raw({"a": entry(), "b": entry("BF16", (2, 2), (8, 16))}, bytes(16))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(flips, written):
    damaged = bytearray(SOUND)
    for position, byte in flips:
        damaged[position] = byte
    try:
        file = open_safetensors(written(bytes(damaged)))
        for name in file.entries:
            file.load(name).to_f32()
    except CheckpointError:
        pass


def test_every_truncation_is_refused(written):
    for length in range(len(SOUND)):
        with pytest.raises(CheckpointError):
            open_safetensors(written(SOUND[:length]))


def shard(folder, name, *tensors):
    save_file({t: torch.full((2,), float(len(t))) for t in tensors}, folder / name)


def index(folder, **homes):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def test_shards(tmp_path):
    shard(tmp_path, "one.safetensors", "a", "bb")
    shard(tmp_path, "two.safetensors", "ccc")
    index(tmp_path, a="one.safetensors", bb="one.safetensors", ccc="two.safetensors")
    model = open_safetensors_model(tmp_path)
    assert {t: f.load(t).values[0] for t, f in model.home.items()} == {"a": 1, "bb": 2, "ccc": 3}
    assert len(model.files) == 2


def test_missing_shard(tmp_path):
    index(tmp_path, a="one.safetensors")
    with pytest.raises(CheckpointError, match=r"one.safetensors is missing"):
        open_safetensors_model(tmp_path)


def test_shard_that_lacks_a_tensor(tmp_path):
    shard(tmp_path, "one.safetensors", "a")
    index(tmp_path, a="one.safetensors", b="one.safetensors")
    with pytest.raises(CheckpointError, match="lacks b"):
        open_safetensors_model(tmp_path)


def test_tensor_in_two_shards(tmp_path):
    shard(tmp_path, "one.safetensors", "a")
    shard(tmp_path, "two.safetensors", "a", "b")
    index(tmp_path, a="one.safetensors", b="two.safetensors")
    with pytest.raises(CheckpointError, match="which one counts"):
        open_safetensors_model(tmp_path)


@pytest.mark.parametrize(
    "name", ["../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..", "a.bin", 5, None, INDEX]
)
def test_shards_outside_the_folder_are_refused(tmp_path, name):
    shard(tmp_path, "one.safetensors", "a")
    index(tmp_path, a=name)
    with pytest.raises(CheckpointError, match="no plain file name"):
        open_safetensors_model(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a"'])
def test_unsound_index(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX):
        open_safetensors_model(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        open_safetensors_model(tmp_path)
