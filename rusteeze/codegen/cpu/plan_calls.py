"""Recorded calls → a plan: place scratch memory, decide where threads must meet."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from rusteeze.artifact.contract import SCHEMA, Arg, Buffer, Call, Library, Plan
from rusteeze.codegen.cpu.call_cost import call_cost
from rusteeze.codegen.cpu.lowering import Lowering, PageSet, PendingCall, Pointer
from rusteeze.codegen.memory import Lifetime, assign_offsets
from rusteeze.codegen.views import Storage

Memory = Storage | PageSet


@dataclass(frozen=True)
class Span:
    """Bytes of an address space (of every row, for scratch)."""

    space: str
    start: int
    stop: int

    def overlaps(self, other: Span) -> bool:
        return self.space == other.space and self.start < other.stop and other.start < self.stop


def make_plan(ctx: Lowering) -> Plan:
    """The plan of everything that was lowered."""
    (logits,) = ctx.graph.outputs
    out = ctx.view(logits).storage
    best, place = ctx.best
    outputs = [out, best, place]
    repeated, private = repeats(ctx.calls, outputs)
    lifetimes = _lifetimes(ctx.calls, repeated, outputs)
    offsets, sizes = assign_offsets(lifetimes)
    number = {life.storage: i for i, life in enumerate(lifetimes)}
    meets, lone_meets = barriers(ctx.calls, offsets), barriers(ctx.calls, offsets, private)
    return Plan(
        schema=SCHEMA,
        libraries=tuple(Library(i.name, i.machine, tuple(sorted(i.requires))) for i in ctx.options.isas),
        vocab_size=int(logits.type.shape[1]),
        max_model_len=ctx.options.max_model_len,
        query_tokens=ctx.query_tokens,
        arena_row_bytes=sizes,
        buffers=tuple(_buffer(life.storage, offsets, private) for life in lifetimes),
        pages=tuple(ctx.pages[layer] for layer in sorted(ctx.pages)),
        calls=tuple(
            Call(
                c.kernel, tuple(_arg(p, number) for p in c.args), meets[i], lone_meets[i], repeated[i],
                c.node.origin, call_cost(ctx, c),
            )
            for i, c in enumerate(ctx.calls)
        ),
        logits=number[out],
        best=(number[best], number[place]),
    )


def _lifetimes(
    calls: list[PendingCall], repeated: list[bool], outputs: list[Storage]
) -> list[Lifetime]:
    """What a repeated call touches lives on to the next call that threads share: that one need not wait
    until all have read it."""
    first: dict[Storage, int] = {}
    last: dict[Storage, int] = {}
    for i, call in enumerate(calls):
        until = repeated.index(False, i)  # the last call is never repeated: it writes what all see
        for p in call.args:
            if isinstance(p.target, Storage) and p.target.kind == "buffer":
                first.setdefault(p.target, i)
                last[p.target] = until
    last |= dict.fromkeys(outputs, len(calls))
    return [Lifetime(s, first[s], last[s]) for s in first]


def _buffer(storage: Storage, offsets: dict[Storage, int], private: Set[Memory]) -> Buffer:
    assert storage.space
    return Buffer(storage.space, storage.row_bytes, offsets[storage], storage in private)


def repeats(calls: list[PendingCall], outputs: list[Storage]) -> tuple[list[bool], Set[Memory]]:
    """Which calls every thread runs whole in a step of one token, and the buffers that they write, which
    each thread has for itself then: nobody waits for one thread's small work. No other call writes these."""
    repeated = [call.rowwise for call in calls]
    while True:
        shared: set[Memory] = {*outputs}
        shared |= {m for call, r in zip(calls, repeated, strict=True) if not r for m in call.writes}
        left = [r and not call.writes & shared for call, r in zip(calls, repeated, strict=True)]
        if left == repeated:
            own = {m for call, r in zip(calls, repeated, strict=True) if r for m in call.writes}
            return repeated, own
        repeated = left


def barriers(
    calls: list[PendingCall], offsets: dict[Storage, int], private: Set[Memory] = frozenset()
) -> list[bool]:
    """Behind which calls all threads meet: before a call that touches bytes which another call since the
    last meeting writes, or writes bytes which one reads. Always behind the last call. What is private
    no other thread touches."""
    meets = [False] * len(calls)
    read: list[Span] = []
    written: list[Span] = []
    for i, call in enumerate(calls):
        reads = [_span(m, offsets) for m in call.reads if m not in private]
        writes = [_span(m, offsets) for m in call.writes if m not in private]
        if i and (_clash(reads + writes, written) or _clash(writes, read)):
            meets[i - 1] = True
            read, written = [], []
        read += reads
        written += writes
    meets[-1] = True
    return meets


def _clash(some: list[Span], others: list[Span]) -> bool:
    return any(a.overlaps(b) for a in some for b in others)


def _span(memory: Memory, offsets: dict[Storage, int]) -> Span:
    if isinstance(memory, PageSet):
        return Span(f"{memory.kind}.{memory.layer}", 0, 1)
    if memory.kind != "buffer":
        return Span(f"{memory.kind}.{memory.name}", 0, 1)
    return Span(memory.space, offsets[memory], offsets[memory] + memory.row_bytes)


def _arg(p: Pointer, number: dict[Storage, int]) -> Arg:
    if isinstance(p.target, PageSet):
        return Arg(p.target.kind, p.target.layer, p.offset)  # type: ignore[arg-type]
    if p.target.kind == "buffer":
        return Arg("buffer", number[p.target], p.offset)
    return Arg(p.target.kind, p.target.name, p.offset)
