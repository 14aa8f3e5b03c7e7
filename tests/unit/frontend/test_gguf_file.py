from __future__ import annotations

import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf_samples import array_entry, entry, raw_gguf, string, tensor, write_gguf

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_file import open_gguf

HUGE = (1 << 64) - 1
DATA = bytes(128)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def test_reads_what_the_gguf_package_writes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"a": rng.random((3, 64), np.float32), "b": rng.random(5, np.float32)}
    entries = {
        "llama.block_count": 2, "llama.eps": 0.5, "flag": True, "name": "tiny", "ids": [1, -2, 3],
        "words": ["ä", ""], "flags": [True, False],
    }  # fmt: skip
    file = open_gguf(write_gguf(tmp_path / "m.gguf", "llama", entries, tensors, {"a": T.Q8_0}))
    found = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()}
    assert found == {"general.architecture": "llama", **entries}
    assert file.tensors["a"].shape == (3, 64)
    assert file.tensors["a"].type is T.Q8_0
    assert file.blocks("a").shape == (3, 2 * 34)
    np.testing.assert_array_equal(file.blocks("b").view(np.float32), tensors["b"])


def test_values_are_views_of_the_file(written):
    file = open_gguf(written(raw_gguf(tensors=[tensor()], data=DATA)))
    assert np.shares_memory(file.blocks("w"), file.bytes)


def test_alignment_is_that_of_the_file(written):
    content = raw_gguf([entry("general.alignment", payload=struct.pack("<I", 128))], [tensor()], DATA, align=128)
    assert open_gguf(written(content)).data_start % 128 == 0


BAD = {
    "empty": (b"", "cannot be opened"),
    "another format": (raw_gguf(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (raw_gguf(version=1), "of version 1"),
    "version 4": (raw_gguf(version=4), "of version 4"),
    "big-endian": (raw_gguf(version=3 << 24), "big-endian"),
    "entry count": (raw_gguf(num_entries=HUGE), f"claims {HUGE} metadata entries"),
    "tensor count": (raw_gguf(num_tensors=HUGE), f"claims {HUGE} tensors"),
    "more entries than there are": (raw_gguf(num_entries=9), "ends inside its header"),
    "more tensors than there are": (raw_gguf(num_tensors=9), "ends inside its header"),
    "long key": (raw_gguf([string("k", HUGE)]), "bytes of a metadata key"),
    "key past the end": (raw_gguf([string("k", 1000)]), "ends inside its header"),
    "key of wrong text": (raw_gguf([entry(b"\xff\xfe")]), "not UTF-8"),
    "same key twice": (raw_gguf([entry("k"), entry("k")]), "'k' twice"),
    "unknown value type": (raw_gguf([entry("k", 13)]), "unknown type 13"),
    "long string": (raw_gguf([entry("k", 8, string("", HUGE))]), "bytes of k"),
    "string past the end": (raw_gguf([entry("k", 8, string("", 1 << 20))]), "ends inside its header"),
    "long array": (raw_gguf([array_entry("k", 0, HUGE)]), "elements of 'k'"),
    "array past the end": (raw_gguf([array_entry("k", 12, 1 << 20)]), "ends inside its header"),
    "strings past the end": (raw_gguf([array_entry("k", 8, 1 << 20)]), "ends inside its header"),
    "array of arrays": (raw_gguf([array_entry("k", 9, 1)]), "array of type 9"),
    "zero alignment": (raw_gguf([entry("general.alignment", payload=bytes(4))]), "general.alignment 0"),
    "odd alignment": (raw_gguf([entry("general.alignment", payload=struct.pack("<I", 48))]), "alignment 48"),
    "alignment as text": (raw_gguf([entry("general.alignment", 8, string("32"))]), "alignment '32'"),
    "same tensor twice": (raw_gguf(tensors=[tensor(), tensor()], data=DATA), "'w' twice"),
    "no axes": (raw_gguf(tensors=[tensor(dims=())], data=DATA), "0 axes"),
    "many axes": (raw_gguf(tensors=[tensor(dims=(1,) * 5)], data=DATA), "5 axes"),
    "claimed axes": (raw_gguf(tensors=[tensor(rank=0xFFFFFFFF)], data=DATA), "axes"),
    "empty axis": (raw_gguf(tensors=[tensor(dims=(32, 0))], data=DATA), "impossible"),
    "size that wraps to 0": (raw_gguf(tensors=[tensor(dims=(1 << 32, 1 << 32))], data=DATA), "before tensor"),
    "size that wraps to 128": (
        raw_gguf(tensors=[tensor(dims=(32, (1 << 62) + 1))], data=DATA), "before tensor",
    ),
    "row that is no multiple of the block": (raw_gguf(tensors=[tensor(kind=2, dims=(33,))], data=DATA), "impossible"),
    "unknown type": (raw_gguf(tensors=[tensor(kind=4)], data=DATA), "unknown ggml type 4"),
    "offset outside": (raw_gguf(tensors=[tensor(offset=1 << 20)], data=DATA), "before tensor"),
    "offset that wraps": (raw_gguf(tensors=[tensor(offset=(1 << 64) - 32)], data=DATA), "before tensor"),
    "odd offset": (raw_gguf(tensors=[tensor(offset=4)], data=DATA), "no multiple of 32"),
    "overlap": (raw_gguf(tensors=[tensor("a"), tensor("b", offset=96)], data=DATA * 2), "overlapping"),
    "short data": (raw_gguf(tensors=[tensor()], data=DATA[:-1]), "before tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_one_line(case, written):
    content, words = BAD[case]
    with pytest.raises(CheckpointError) as caught:
        open_gguf(written(content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(written):
    content = raw_gguf(
        [entry("k"), entry("s", 8, string("text")), array_entry("a", 8, 2, string("x") + string("yz"))],
        [tensor(), tensor("v", (8, 4), offset=128)], DATA * 2,
    )  # fmt: skip
    assert len(open_gguf(written(content)).tensors) == 2
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            open_gguf(written(content[:length]))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_gguf(tmp_path / "none.gguf")
