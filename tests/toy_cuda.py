"""A toy model for GPUs: plan, machine code for the stub (tests/stub_gpu.py), and what the kernels do.

Like the mock model (tests/mock_executor.py) it keeps token ids where a real one keeps keys, and reads the history
back through tiles and block tables. Its logits are a hash of the history plus a weight, so any wrong
count, address, offset, table, stale copy or unwritten weight gives wrong tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from mock_executor import logits_of
from stub_gpu import Grid, Kernel, memory

from rusteeze.artifact.contract import BLOCK_SIZE, TILE_FIELDS, Buffer, Cost, Pages
from rusteeze.artifact.cuda_contract import (
    CUDA_SCHEMA,
    PLAN_FILE,
    WEIGHTS_FILE,
    Address,
    Binary,
    Choice,
    Count,
    CudaCall,
    CudaPlan,
    Launch,
    Param,
    encode_cuda_plan,
)
from rusteeze.artifact.cuda_contract import Kernel as PlanKernel
from rusteeze.artifact.store import publish

VOCAB, ROW = 331, 352
MAX_MODEL_LEN = 640
QUERY_TOKENS = 4
BUCKETS = (1, 2, 4, 8)
SHARED_BYTES = 60_000
SCRATCH_BYTES = 128
ONE = Count()
PARTS = (slice(0, 100), slice(100, 300), slice(300, VOCAB))
BIAS = np.random.default_rng(7).standard_normal(VOCAB).astype(np.float32)


def _pointer(name: str, kind: str = "*i32", divisible: int = 16) -> Param:
    return Param(name, kind, divisible)  # type: ignore[arg-type]


_COUNTS = Address("input", "counts")
_STORE = (
    tuple(_pointer(n) for n in ("counts", "input_ids", "slots", "keys", "tokens")),
    (_COUNTS, Address("input", "input_ids"), Address("input", "slot_mapping"),
     Address("key_pages", 0), Address("buffer", 0)),
)  # fmt: skip
_LOGITS = (
    (
        *(_pointer(n) for n in ("counts", "rows", "tiles", "tables", "keys", "tokens")),
        _pointer("bias", "*fp32"), _pointer("work"), _pointer("out", "*fp32"), _pointer("values", "*fp32"),
        _pointer("places"), Param("blocks", "i32", 2),
    ),
    (
        _COUNTS, Address("input", "rows"), Address("input", "tiles"), Address("input", "block_tables"),
        Address("key_pages", 0), Address("buffer", 0), Address("weight", "bias"),
        Address("workspace", 0, 64), Address("buffer", 1), Address("buffer", 2), Address("buffer", 3),
        Count(of="blocks"),
    ),
)  # fmt: skip


def toy_plan(**changes: object) -> CudaPlan:
    """Two calls: "store" keeps the tokens in pages and in a buffer; "logits" works on the rows, by one
    kernel in short contexts and another in long ones."""
    by_rows = (Count(of="rows", per=2), ONE, ONE)
    plan = CudaPlan(
        schema=CUDA_SCHEMA, architectures=("sm_80", "sm_90"), vocab_size=VOCAB,
        max_model_len=MAX_MODEL_LEN, query_tokens=QUERY_TOKENS, buckets=BUCKETS,
        arena_row_bytes={"T": 32, "R": 4 * ROW + 192}, workspace_bytes=128,
        buffers=(Buffer("T", 16, 16), Buffer("R", 4 * ROW, 64), Buffer("R", 64, 4 * ROW + 64), Buffer("R", 64, 4 * ROW + 128)),
        pages=(Pages(0, 4 * BLOCK_SIZE, 32),),
        kernels=(
            _kernel("store", _STORE[0]),
            _kernel("logits_short", _LOGITS[0], shared_bytes=SHARED_BYTES),
            _kernel("logits_long", _LOGITS[0], global_scratch_bytes=SCRATCH_BYTES),
        ),
        calls=(
            CudaCall((Choice((Launch(0, _STORE[1], (Count(of="tokens", per=4), ONE, ONE)),)),), origin="first",
                     cost=Cost(row_bytes=8)),
            CudaCall(
                (Choice((Launch(1, _LOGITS[1], by_rows),), up_to=512), Choice((Launch(2, _LOGITS[1], by_rows),))),
                by="context", origin="second", cost=Cost("bf16", "R", row_flops=2),
            ),
        ),
        logits=1, best=(2, 3), best_parts=len(PARTS),
    )  # fmt: skip
    return msgspec.structs.replace(plan, **changes)


def _kernel(name: str, params: tuple[Param, ...], **facts: int) -> PlanKernel:
    binaries = [Binary(a, f"cuda/{a}/{name}.cubin", 4, **facts) for a in ("sm_80", "sm_90")]
    return PlanKernel(name, f"{name}_entry", params, tuple(binaries))


def cubin(kernel: PlanKernel) -> bytes:
    """Machine code for the stub: name, parameters with the two hidden ones, shared memory."""
    kinds = "".join("p" if p.type.startswith("*") else "i" for p in kernel.params) + "pp"
    return f"{kernel.entry} {kinds} {kernel.binaries[0].shared_bytes}\n".encode()


class ToyKernels:
    """What the kernels do. ``seen``: the names and grids of those that ran."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Grid]] = []
        self.scratch: list[int] = []

    def table(self) -> dict[str, Kernel]:
        return {
            "store_entry": self._store,
            "logits_short_entry": lambda grid, args: self._logits("logits_short", grid, args),
            "logits_long_entry": lambda grid, args: self._logits("logits_long", grid, args),
        }

    def _store(self, grid: Grid, args: list[int]) -> None:
        self.seen.append(("store", grid))
        tokens = int(memory(args[0], 4, np.int32)[0])
        assert grid[0] >= -(-tokens // 4)
        ids, slots = (memory(at, tokens, np.int32) for at in args[1:3])
        assert len(set(slots.tolist())) == tokens
        for token, slot in zip(ids, slots, strict=True):
            memory(args[3] + 4 * int(slot), 1, np.int32)[0] = token
        memory(args[4], 4 * tokens, np.int32)[::4] = ids

    def _logits(self, name: str, grid: Grid, args: list[int]) -> None:
        self.seen.append((name, grid))
        self.scratch.append(args[12])
        tokens, rows, num_tiles, sequences = memory(args[0], 4, np.int32).tolist()
        assert grid[0] >= -(-rows // 2)
        width = args[11]
        wanted = memory(args[1], rows, np.int32)
        tiles = memory(args[2], TILE_FIELDS * num_tiles, np.int32).reshape(-1, TILE_FIELDS)
        tables = memory(args[3], sequences * width, np.int32).reshape(sequences, width)
        work = memory(args[7], 4, np.int32)
        assert work[0] == 0, "the workspace was not zeroed"
        for place, row in enumerate(wanted):
            first, _, position, sequence = next(t for t in tiles if t[0] <= row < t[0] + t[1])
            length = int(position + row - first) + 1
            history = np.array([
                memory(args[4] + 4 * (int(tables[sequence, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE), 1, np.int32)[0]
                for p in range(length)
            ])  # fmt: skip
            assert history[-1] == memory(args[5], 4 * tokens, np.int32)[4 * row]
            out = memory(args[8] + 4 * ROW * place, VOCAB, np.float32)
            out[:] = logits_of(history, VOCAB) + memory(args[6], VOCAB, np.float32)
            values, places = memory(args[9] + 64 * place, 3, np.float32), memory(args[10] + 64 * place, 3, np.int32)
            for part, columns in enumerate(PARTS):
                cut = np.where(np.isnan(out[columns]), np.inf, out[columns])
                values[part], places[part] = cut.max(), columns.start + cut.argmax()


def expected_logits(history: list[int]) -> np.ndarray:
    return logits_of(np.array(history), VOCAB) + BIAS


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    """Greedy decoding, computed without any runtime."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(expected_logits(tokens).argmax()))
    return tokens[len(prompt) :]


def write_artifact(folder: Path, plan: CudaPlan, tokenizer: str, padding: int = 0) -> Path:
    """The toy model on disk; ``padding`` bytes of weights that nobody uses come before the bias."""

    def build(draft: Path) -> None:
        (draft / "cuda").mkdir()
        (draft / PLAN_FILE).write_bytes(encode_cuda_plan(plan))
        (draft / WEIGHTS_FILE).write_bytes(_weights(padding))
        for kernel in plan.kernels:
            for binary in kernel.binaries:
                path = draft / binary.file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(cubin(kernel))
        (draft / "tokenizer.json").write_text(tokenizer)
        (draft / "generation_config.json").write_text("{}")

    publish(folder, build, key="toy", facts={"model": "toy"})
    return folder


def _weights(padding: int) -> bytes:
    """A safetensors file whose data begins at a multiple of 64."""
    size = padding // 64 * 64
    header = {
        "padding": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        "bias": {"dtype": "U8", "shape": [BIAS.nbytes], "data_offsets": [size, size + BIAS.nbytes]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    data = np.random.default_rng(3).bytes(size) + BIAS.tobytes()
    return len(text).to_bytes(8, "little") + text + data
