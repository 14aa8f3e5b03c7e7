"""Damaged GGUF files: each either opens or is refused with a CheckpointError, at no cost in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from gguf_samples import tiny_model, vocabulary, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf_file import BAD

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_file import open_gguf

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    types = {"blk.0.attn_q.weight": T.Q4_0, "token_embd.weight": T.Q8_0}
    path = write_model(folder / "m.gguf", tiny_model("llama"), "llama", metadata=vocabulary(), types=types)
    return path, path.read_bytes(), open_gguf(path).data_start


def read_all(path):
    """Whether the file was accepted."""
    try:
        checkpoint = open_checkpoint(path)
        with np.errstate(all="ignore"):
            for param in checkpoint.params():
                checkpoint.load(param).to_f32()
    except CheckpointError as e:
        assert "\n" not in str(e)  # noqa: PT017
        return False
    return True


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_flipped_bytes(sound, data, tmp_path):
    _, content, header = sound
    flips = data.draw(st.lists(st.tuples(st.integers(0, header - 1), st.integers(0, 255)), min_size=1, max_size=4))
    damaged = bytearray(content)
    for position, byte in flips:
        damaged[position] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged)
    read_all(path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 0.999))
def test_truncation(sound, cut, tmp_path):
    _, content, _ = sound
    path = tmp_path / "m.gguf"
    path.write_bytes(content[: int(cut * len(content))])
    assert not read_all(path)


def test_the_undamaged_file_is_accepted(sound):
    assert read_all(sound[0])


def test_bad_files_cost_no_memory(tmp_path):
    path = tmp_path / "m.gguf"
    tracemalloc.start()
    for content, _ in BAD.values():
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_names_that_cannot_be_printed_stay_on_the_line():
    assert str(CheckpointError("states llama.\nrope\x1b[2J, größer")) == "states llama.\\nrope\\x1b[2J, größer"
