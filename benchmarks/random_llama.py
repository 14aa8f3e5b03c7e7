"""A GGUF file of Llama-2-7B's widths with random 4-bit weights and the tokenizer of another file.

    .venv/bin/python benchmarks/random_llama.py TOKENIZER.gguf OUT.gguf

For measuring speed alone: what it says is noise. 3.9 GB as Q4_0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import prod

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

LAYERS, WIDTH, HIDDEN, HEADS, CONTEXT = 32, 4096, 11008, 32, 4096
BLOCK, BLOCK_BYTES = 32, 18
POOL_BLOCKS = 2**20
"""Blocks that are drawn; tensors are cut from them at drawn places."""
# keeps results of a product about as large as its inputs: codes of Q4_0 deviate by 4.6 scales
SCALE = np.float16(WIDTH**-0.5 / 4.6)


def main() -> None:
    source, out = GGUFReader(sys.argv[1]), GGUFWriter(sys.argv[2], "llama")
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            kind, *element = field.types
            if kind is GGUFValueType.ARRAY:
                out.add_key_value(name, field.contents(), kind, element[0])
            else:
                out.add_key_value(name, field.contents(), kind)
    vocabulary = len(source.fields["tokenizer.ggml.tokens"].data)
    out.add_block_count(LAYERS)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(vocabulary)
    names = dict(tensors(vocabulary))
    for name, shape in names.items():
        out.add_tensor_info(
            name, shape if len(shape) == 1 else row_bytes(shape), np.dtype(np.float32 if len(shape) == 1 else np.uint8),
            num_bytes(shape), None if len(shape) == 1 else GGMLQuantizationType.Q4_0,
        )  # fmt: skip
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    pool = drawn_blocks(rng)
    for shape in names.values():
        out.write_tensor_data(values(shape, pool, rng))
    out.close()


def tensors(vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes [N, K]."""
    yield "token_embd.weight", (vocabulary, WIDTH)
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{i}.{name}.weight", (WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{i}.{name}.weight", (HIDDEN, WIDTH)
        yield f"blk.{i}.ffn_down.weight", (WIDTH, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", (WIDTH,)
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (vocabulary, WIDTH)


def row_bytes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in bytes."""
    return (*shape[:-1], shape[-1] // BLOCK * BLOCK_BYTES)


def num_bytes(shape: tuple[int, ...]) -> int:
    return 4 * shape[0] if len(shape) == 1 else prod(row_bytes(shape))


def drawn_blocks(rng: np.random.Generator) -> np.ndarray:
    """uint8 [POOL_BLOCKS, 18]: a scale and 32 codes each."""
    blocks = rng.integers(0, 256, (POOL_BLOCKS, BLOCK_BYTES), np.uint8)
    blocks[:, :2] = np.frombuffer(SCALE.tobytes(), np.uint8)
    return blocks


def values(shape: tuple[int, ...], pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    count = prod(shape) // BLOCK
    start = int(rng.integers(0, len(pool)))
    return np.take(pool, np.arange(start, start + count) % len(pool), axis=0).reshape(row_bytes(shape))


if __name__ == "__main__":
    main()
