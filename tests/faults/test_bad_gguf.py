"""GGUF files with something wrong in them: compile says what, and makes nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from outcomes import refused, refused_to_compile, rusteeze

WIDTH, INNER, VOCABULARY, HEADS, LAYERS = 32, 48, 260, 4, 2
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "ab"]
TOKENS = LETTERS + [f"<unused{i}>" for i in range(VOCABULARY - len(LETTERS))]

METADATA: dict[str, Any] = {
    "llama.context_length": 64, "llama.block_count": LAYERS, "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER, "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": HEADS, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": WIDTH // HEADS, "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * VOCABULARY, "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        inner = {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
        norms = dict.fromkeys(("attn_norm", "ffn_norm"), (WIDTH,))
        shapes |= {f"blk.{layer}.{k}.weight": v for k, v in (square | inner | norms).items()}
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()
    }


def write(path: Path, changes: dict[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Path:
    """A tiny model; ``changes`` of metadata (None removes an entry), ``drop`` names tensors to leave out."""
    entries = METADATA | (changes or {})
    writer = gguf.GGUFWriter(path, entries.pop("general.architecture", "llama"))
    for key, value in entries.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(key, value)
    for name, value in tensors().items():
        if name not in drop:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BAD_METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "more layers": ({"llama.block_count": 3}, "lacks 9 weights"),
    "fewer layers": ({"llama.block_count": 1}, "that its model does not have"),
    "endless layers": ({"llama.block_count": 2**31 - 1}, "claims 2147483647 layers"),
    "wider": ({"llama.embedding_length": 64}, "but the model wants"),
    "no heads": ({"llama.attention.head_count": 0}, "states 0 heads"),
    "other heads": ({"llama.attention.head_count_kv": 2}, "but the model wants"),
    "no width": ({"llama.embedding_length": None}, "lacks llama.embedding_length"),
    "unknown entry": ({"llama.attention.nonesuch": 1}, "llama.attention.nonesuch"),
    "unknown architecture": ({"general.architecture": "bloom"}, "'bloom'"),
    "no tokenizer": ({"tokenizer.ggml.tokens": None}, "holds no tokenizer"),
    "unknown tokenizer": ({"tokenizer.ggml.model": "nonesuch"}, "tokenizer"),
    "one of three parts": ({"split.count": 3}, "join them"),
}


@pytest.mark.slow
def test_the_sound_file_compiles(tmp_path: Path, out: Path) -> None:
    result = rusteeze("compile", write(tmp_path / "m.gguf"), "-o", out, "--jobs", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", BAD_METADATA)
def test_metadata_of_another_model(name: str, tmp_path: Path, out: Path) -> None:
    changes, words = BAD_METADATA[name]
    assert words in refused_to_compile(write(tmp_path / "m.gguf", changes), out)


def test_a_missing_tensor(tmp_path: Path, out: Path) -> None:
    path = write(tmp_path / "m.gguf", drop=("blk.1.ffn_up.weight",))
    assert "lacks 1 weights" in refused_to_compile(path, out)


@pytest.mark.parametrize("share", [0.00001, 0.001, 0.05, 0.5, 0.9999])
def test_a_cut_file(share: float, tmp_path: Path, out: Path) -> None:
    path = write(tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: 4 + int(share * len(content))])
    message = refused_to_compile(path, out)
    assert "download it again" in message
    assert refused("generate", path, "-p", "x") == message


@pytest.mark.parametrize(
    ("start", "patch", "words"),
    [
        (0, b"JUNK", "not a GGUF file"),
        (4, struct.pack("<I", 99), "version 99"),
        (8, struct.pack("<Q", 1 << 62), "claims 4611686018427387904 tensors"),
        (16, struct.pack("<Q", 1 << 62), "claims 4611686018427387904 metadata entries"),
        (24, struct.pack("<Q", 1 << 62), "claims 4611686018427387904 bytes"),
        (40, b"\xff" * 200, "damaged"),
    ],
)
def test_a_broken_header(start: int, patch: bytes, words: str, tmp_path: Path, out: Path) -> None:
    path = write(tmp_path / "m.gguf")
    content = bytearray(path.read_bytes())
    content[start : start + len(patch)] = patch
    path.write_bytes(content)
    assert words in refused_to_compile(path, out)
