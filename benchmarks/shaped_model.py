"""A GGUF file of the shape of Llama-3.2-1B with random 4-bit weights: for times, not for texts.

    .venv/bin/python benchmarks/shaped_model.py FILE.gguf

Blocks are Q4_0 with random codes and one small scale, so that logits stay finite; about 700 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

WIDTH, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 2048, 8192, 16, 32, 8, 128_256, 131_072
BLOCK, BLOCK_BYTES = 32, 18  # of Q4_0: a float16 scale and 32 codes of 4 bits
SCALE = np.float16(0.004)


def shapes() -> dict[str, tuple[int, int]]:
    """Names and shapes of the matrices, outermost axis first. The head is the embedding."""
    narrow = WIDTH * KV_HEADS // HEADS
    found = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        own = {
            "attn_q": (WIDTH, WIDTH), "attn_k": (narrow, WIDTH), "attn_v": (narrow, WIDTH),
            "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }  # fmt: skip
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found


def blocks(shape: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """uint8 [rows, bytes of a row]."""
    rows, columns = shape
    made = draw.integers(0, 256, (rows, columns // BLOCK, BLOCK_BYTES), np.uint8)
    made[..., :2] = np.frombuffer(SCALE.tobytes(), np.uint8)
    return made.reshape(rows, -1)


def write(path: Path) -> None:
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(500_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    letters = [*"abcdefghijklmnopqrstuvwxyz", "ab"]
    writer.add_token_list([*letters, *(f"<unused{i}>" for i in range(VOCABULARY - len(letters)))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    for name in ("output_norm", *(f"blk.{i}.{n}_norm" for i in range(LAYERS) for n in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    for name, shape in shapes().items():
        writer.add_tensor(name, blocks(shape, draw), raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
