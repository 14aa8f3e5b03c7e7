"""Damaged GGUF files: each either opens or is refused with a CheckpointError, at no cost in memory."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from gguf_samples import entry, raw_gguf, string, tensor, tiny_model, vocabulary, write_model
from hypothesis import HealthCheck, find, given, settings
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


# Numbers at which sizes wrap, alignments fail and limits lie.
EDGES = [
    0, 1, 2, 3, 4, 5, 31, 32, 33, 48, 64, 96, 128, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 22, 1 << 24, (1 << 31) - 1,
    1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 58, (1 << 61) + 1, (1 << 62) + 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 128, (1 << 64) - 32, (1 << 64) - 1,
]  # fmt: skip
U32, U64 = st.sampled_from([e for e in EDGES if e < 1 << 32]), st.sampled_from(EDGES)
NAMES = st.sampled_from(["w", "v", "general.alignment", "", "../../etc/passwd", "a" * 1024, "a" * 1025, b"\xff\xfe"])
MAYBE = st.none() | U64
VALUES = st.one_of(
    st.tuples(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 255]), st.binary(max_size=8)),
    st.tuples(st.just(4), U32.map(lambda n: struct.pack("<I", n))),
    st.tuples(st.just(8), st.builds(string, st.text(max_size=4), MAYBE)),
    st.tuples(
        st.just(9), st.builds(lambda kind, count, rest: struct.pack("<IQ", kind, count) + rest, U32, U64, st.binary(max_size=40))
    ),
)
ENTRIES = st.builds(lambda name, value: entry(name, *value), NAMES, VALUES)
TENSORS = st.builds(
    tensor, NAMES, st.lists(U64, max_size=5).map(tuple), st.sampled_from([*range(42), 1 << 31, (1 << 32) - 1]), U64,
    st.none() | U32,
)  # fmt: skip
FILES = st.builds(
    raw_gguf, st.lists(ENTRIES, max_size=3), st.lists(TENSORS, max_size=3), st.sampled_from([b"", bytes(128), bytes(4096)]),
    version=st.sampled_from([2, 3, 3, 3, 4]), num_entries=MAYBE, num_tensors=MAYBE,
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=FILES)
def test_headers_of_extreme_numbers(content, tmp_path):
    """Counts, lengths, axes, offsets and alignments that wrap or lie: refused in a line, or every tensor is within
    the file, and nothing of the claimed size was ever made."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        file = open_gguf(path)
    except CheckpointError as e:
        assert "\n" not in str(e)  # noqa: PT017
    else:
        ends = sorted((t.offset, t.offset + t.num_bytes) for t in file.tensors.values())
        assert all(file.data_start <= begin < end <= len(content) for begin, end in ends)
        assert all(before[1] <= after[0] for before, after in pairwise(ends))
        for name in file.tensors:
            assert file.blocks(name).nbytes == file.tensors[name].num_bytes
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10_000_000


def test_extreme_headers_are_not_all_refused():
    """The strategy above reaches files that open, else it would test little."""
    found = find(FILES, _opens, settings=settings(max_examples=20_000, database=None, deadline=None))
    assert found[:4] == b"GGUF"


def _opens(content):
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        try:
            return bool(open_gguf(Path(file.name)).tensors)
        except CheckpointError:
            return False


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
