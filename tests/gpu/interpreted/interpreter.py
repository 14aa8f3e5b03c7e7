"""Runs a CudaPlan in Triton's interpreter: a small executor that takes the contract as a GPU's does.

Memory is one byte tensor per arena, weight, input and
page set; arguments are typed slices of them that begin at the plan's addresses, and every one is checked
for the alignment that its parameter promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

from rusteeze.artifact.contract import BLOCK_SIZE, TILE_FIELDS
from rusteeze.artifact.cuda_contract import Address, Capacities, Count, CudaPlan, Param
from rusteeze.codegen.gpu.compile_kernel import load_kernel
from rusteeze.codegen.gpu.source import Source
from rusteeze.ir.ops.elementwise import bf16_bits
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import query_tiles

DTYPES = {
    "*fp32": torch.float32, "*bf16": torch.bfloat16, "*fp16": torch.float16, "*i32": torch.int32, "*u8": torch.uint8,
}  # fmt: skip
NAN_BYTE = 0xFF
SLACK = 256


def _as_f32(data: np.ndarray) -> np.ndarray:
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


_create_dot = interpreter.InterpreterBuilder.create_dot


def _dot_of_bf16(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    """The interpreter multiplies the bits of bf16 operands; it gets float32 ones of the same value."""

    def widened(t: Any) -> Any:
        return interpreter.TensorHandle(_as_f32(t.data), tl.float32) if t.dtype.scalar == tl.bfloat16 else t

    return _create_dot(self, widened(a), widened(b), d, *rest)


_cast = interpreter.InterpreterBuilder.cast_impl


def _cast_to_nearest(self: Any, src: Any, dst_type: Any) -> Any:
    """The interpreter cuts float32 off to bf16; GPUs round to nearest even."""
    if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
        return interpreter.TensorHandle(bf16_bits(src.data), tl.bfloat16)
    return _cast(self, src, dst_type)


interpreter.InterpreterBuilder.create_dot = _dot_of_bf16
interpreter.InterpreterBuilder.cast_impl = _cast_to_nearest


def imported(source: Source, folder: Path) -> Any:
    """The kernel of a source, written as a file and imported."""
    path = folder / f"{source.name}.py"
    path.write_text(source.text(), encoding="utf-8")
    return load_kernel(path)


def memory(num_bytes: int, fill: int = NAN_BYTE) -> torch.Tensor:
    """Bytes at a multiple of 256."""
    raw = torch.full((num_bytes + SLACK,), fill, dtype=torch.uint8)
    skip = -raw.data_ptr() % 256
    return raw[skip : skip + num_bytes]


class InterpretedExecutor:
    """``execute`` as runtime/executor.py has it; ``best``: the parts of its likeliest tokens. Scratch and pages begin as NaN, the workspace as zeros."""

    block_size = BLOCK_SIZE

    def __init__(
        self, plan: CudaPlan, sources: Mapping[str, Source], weights: Mapping[str, np.ndarray], folder: Path,
        num_blocks: int = 32,
    ) -> None:  # fmt: skip
        self.plan, self.num_blocks = plan, num_blocks
        self._kernels = [imported(sources[k.name], folder) for k in plan.kernels]
        self._weights = {}
        for name, data in weights.items():
            self._weights[name] = memory(data.nbytes)
            self._weights[name].numpy()[:] = data
        self._pages = {
            (kind, p.layer): memory(size * num_blocks)
            for p in plan.pages for kind, size in (("key_pages", p.key_bytes), ("value_pages", p.value_bytes))
        }  # fmt: skip
        self._workspace = memory(plan.workspace_bytes, 0)
        self.launched: list[str] = []

    def execute(self, batch: Batch, spare: int = 0) -> np.ndarray:
        """Logits f32 [R, V]. ``spare``: by how much capacities exceed the step."""
        tiles = query_tiles(batch, self.plan.query_tokens)
        context = int(batch.context_len.max())
        c = Capacities(
            batch.num_tokens + spare, len(batch.rows) + spare, len(tiles) + spare, context + 100 * spare,
            batch.block_tables.shape[1] + spare,
        )  # fmt: skip
        inputs = self._inputs(batch, tiles, c)
        arenas = {
            space: memory(size * {"T": c.tokens, "R": c.rows}[space]) for space, size in self.plan.arena_row_bytes.items()
        }
        self.launched = []
        for launch, grid in self.plan.launches(c):
            kernel = self.plan.kernels[launch.kernel]
            args = [
                self._argument(a, p, c, inputs, arenas) for a, p in zip(launch.args, kernel.params, strict=True)
            ]
            self._kernels[launch.kernel][grid](*args)
            self.launched.append(kernel.name)
        rows, parts = len(batch.rows), self.plan.best_parts

        def result(number: int, columns: int, kind: type) -> np.ndarray:
            buffer = self.plan.buffers[number]
            start = c.rows * buffer.offset
            flat = arenas["R"][start : start + rows * buffer.row_bytes].numpy().view(kind)
            return flat.reshape(rows, -1)[:, :columns].copy()

        values, places = self.plan.best
        self.best = result(values, parts, np.float32), result(places, parts, np.int32)
        return result(self.plan.logits, self.plan.vocab_size, np.float32)

    def _inputs(self, batch: Batch, tiles: np.ndarray, c: Capacities) -> dict[str, torch.Tensor]:
        """Behind the counts lies what would be out of bounds everywhere."""
        sequences = batch.num_sequences
        tables = np.full((sequences, c.blocks), -(2**30), np.int32)
        tables[:, : batch.block_tables.shape[1]] = batch.block_tables
        arrays = {
            "input_ids": batch.input_ids, "positions": batch.positions, "slot_mapping": batch.slot_mapping,
            "rows": batch.rows, "tiles": tiles.reshape(-1), "block_tables": tables.reshape(-1),
            "counts": np.array([batch.num_tokens, len(batch.rows), len(tiles), sequences], np.int32),
        }  # fmt: skip
        assert tiles.shape[1] == TILE_FIELDS
        out = {}
        for name, array in arrays.items():
            padded = np.concatenate([array.astype(np.int32), np.full(8, -(2**30), np.int32)])
            out[name] = memory(padded.nbytes)
            out[name].numpy()[:] = padded.view(np.uint8)
        return out

    def _argument(
        self, arg: Address | Count, param: Param, c: Capacities, inputs: Mapping[str, torch.Tensor],
        arenas: Mapping[str, torch.Tensor],
    ) -> Any:  # fmt: skip
        if isinstance(arg, Count):
            value = arg.value(c)
            assert value % param.divisible == 0
            return value
        start = arg.offset
        if arg.memory == "buffer":
            buffer = self.plan.buffers[int(arg.which)]
            base = arenas[buffer.space]
            start += {"T": c.tokens, "R": c.rows}[buffer.space] * buffer.offset
        elif arg.memory == "weight":
            base = self._weights[str(arg.which)]
        elif arg.memory == "input":
            base = inputs[str(arg.which)]
        elif arg.memory == "workspace":
            base = self._workspace
        else:
            base = self._pages[arg.memory, int(arg.which)]
        typed = base[start:]
        assert typed.data_ptr() % param.divisible == 0, param
        size = torch.empty((), dtype=DTYPES[param.type]).element_size()
        return typed[: len(typed) // size * size].view(DTYPES[param.type])
