"""The new checkpoint as a model folder: config.json, safetensors files, and what came with the original."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rusteeze.quantize.assemble import SUFFIX, Assembly
from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.shards import write_shards
from rusteeze.quantize.source_model import SourceModel
from rusteeze.quantize.writer import Facts, Writer

Tensor = torch.Tensor


def write_folder(
    folder: Path, assembly: Assembly, source: SourceModel, writer: Writer, options: QuantizeOptions, left: set[str]
) -> dict[str, Any]:  # fmt: skip
    """Fill an empty folder; facts about it. ``left`` are stored matrices of products that stay plain."""
    bits: dict[str, int] = {}
    num_bits = num_weights = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal num_bits, num_weights
        for stored in assembly:
            if isinstance(stored.content, Tensor):
                yield stored.name, stored.content
                continue
            module = stored.name.removesuffix(SUFFIX)
            bits[module] = stored.content.bits
            num_bits += stored.content.num_bits
            num_weights += stored.content.codes.numel()
            yield from writer.tensors(module, stored.content).items()

    total = write_shards(folder, tensors())
    # a head that shares the embeddings is a module of its own for who reads the folder
    plain = {*left, *(name for name, first in source.traced.tied.items() if first.removesuffix(SUFFIX) not in bits)}
    facts = Facts(options, bits, sorted(name.removesuffix(SUFFIX) for name in plain))
    table = {**source.config(), "quantization_config": writer.table(facts)}
    (folder / "config.json").write_text(json.dumps(table, indent=2, default=str) + "\n", encoding="utf-8")
    source.save_companions(folder)
    return {"bytes": total, "matrices": len(bits), "bits_per_weight": round(num_bits / num_weights, 4)}
