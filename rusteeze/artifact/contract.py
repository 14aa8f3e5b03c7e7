"""The data contract between compiler and runtime: what ``plan.json`` says.

A plan is a list of kernel calls over buffers, weights, step inputs and cache pages; the runtime turns
it into a table of addresses and knows nothing else about the model. All sizes are in bytes.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from rusteeze.errors import BrokenArtifact

Decoded = TypeVar("Decoded")
SCHEMA = 2
BLOCK_SIZE = 16
"""Tokens per cache page."""

BEST_PARTS = 4
"""Into how many parts a row of logits is cut to find the largest."""

STEP_INPUTS = ("input_ids", "positions", "slot_mapping", "rows", "tiles", "block_tables")
TILE_FIELDS = 4
"""int32 fields of an attention tile: first row, number of rows, first position, sequence."""

Kind = Literal["buffer", "weight", "input", "key_pages", "value_pages"]


class Arg(msgspec.Struct, frozen=True, array_like=True):
    """A pointer argument: buffer number, weight name, input name or layer, and an offset into it."""

    kind: Kind
    which: int | str
    offset: int = 0


class Cost(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a call has to do at least, for measuring: operations (a multiplication or an addition is one)
    and bytes that it reads and writes."""

    arithmetic: Literal["int8", "bf16", "f32"] = "f32"
    """Of its products."""
    space: Literal["T", "R"] = "T"
    """Its rows: a token or a logits row each."""
    row_flops: int = 0
    row_bytes: int = 0
    """Scratch rows, whole, and cache written."""
    weight_bytes: int = 0
    """Read once a step."""
    gathered_row_bytes: int = 0
    """Of a table or of experts, for each row, as long as that is less than ``gathered_bytes``."""
    gathered_bytes: int = 0
    pair_flops: int = 0
    """For each token and each token that it attends to."""
    cached_bytes: int = 0
    """For each sequence and each token of its context."""
    window: int = 0
    """To how many tokens a token attends at most; 0: to all."""


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kernel call. ``barrier``: all threads wait for each other behind it.

    Steps of one token have little to share. There ``lone_barrier`` says whether threads wait, and a call
    that ``repeats`` is run whole by every thread, each into its own copy of what it writes."""

    kernel: str
    args: tuple[Arg, ...]
    barrier: bool = True
    lone_barrier: bool = True
    repeats: bool = False
    origin: str = ""
    cost: Cost = Cost()


class Buffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Scratch memory with one row per token ("T") or per logits row ("R").

    It begins ``offset`` bytes *per row of capacity* into the arena of its space; in a step of one token,
    if it is ``private``, into an arena of each thread's own."""

    space: Literal["T", "R"]
    row_bytes: int
    offset: int
    private: bool = False


class Pages(msgspec.Struct, frozen=True):
    """Bytes of one page (BLOCK_SIZE tokens) of a layer's keys and values; 0 for values that are part of
    the keys."""

    layer: int
    key_bytes: int
    value_bytes: int


class Library(msgspec.Struct, frozen=True):
    """Compiled kernels for one instruction set: the file ``cpu/<name>.so``.

    It runs on a ``machine`` (as ``uname -m`` says) whose processor has all features in ``requires``
    (as Linux names them)."""

    name: str
    machine: str
    requires: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    schema: int
    libraries: tuple[Library, ...]
    """By preference."""
    vocab_size: int
    max_model_len: int
    query_tokens: int
    """Most tokens in one attention tile."""
    arena_row_bytes: dict[str, int]
    """Per space: bytes per row of capacity."""
    buffers: tuple[Buffer, ...]
    pages: tuple[Pages, ...]
    calls: tuple[Call, ...]
    logits: int
    """The buffer that holds float32 [R, vocab_size] after a step."""
    best: tuple[int, int]
    """The buffers that hold the largest logit of each row's parts, float32 [R, BEST_PARTS], and its token,
    int32: the first of equals, or the first NaN."""

    def kv_bytes_per_block(self) -> int:
        return sum(p.key_bytes + p.value_bytes for p in self.pages)


class _Version(msgspec.Struct):
    """The one field that every schema has."""

    schema: int


def encode_plan(plan: Plan) -> bytes:
    return msgspec.json.format(msgspec.json.encode(plan), indent=1)


def decode_plan(data: bytes) -> Plan:
    """BrokenArtifact when the data is no plan of this schema."""
    return decode_versioned(data, Plan, SCHEMA, "plan.json")


def decode_versioned(data: bytes, kind: type[Decoded], known: int, file: str) -> Decoded:
    """JSON with a field ``schema``, which must be the one that is known: BrokenArtifact, naming the file."""
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema != known:
            raise BrokenArtifact(f"{file}: schema {schema}, this version reads {known}")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenArtifact(f"{file}: {error}") from error
