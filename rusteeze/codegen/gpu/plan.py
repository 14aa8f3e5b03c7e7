"""Recorded calls and compiled kernels → a CudaPlan: scratch memory is placed, storages get numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rusteeze.artifact.contract import Buffer, Cost
from rusteeze.artifact.cuda_contract import (
    CUDA_SCHEMA,
    Address,
    Argument,
    Binary,
    Choice,
    Count,
    CudaCall,
    CudaPlan,
    Kernel,
    Launch,
)
from rusteeze.codegen.gpu.call_cost import call_cost
from rusteeze.codegen.gpu.lowering import Lowering, PendingCall, PendingChoice, PendingLaunch
from rusteeze.codegen.gpu.source import PageSet, Pointer, Workspace
from rusteeze.codegen.memory import Lifetime, assign_offsets
from rusteeze.codegen.views import Storage


def make_cuda_plan(
    ctx: Lowering, binaries: Mapping[str, tuple[Binary, ...]], architectures: tuple[str, ...]
) -> CudaPlan:
    """The plan of everything that was lowered. ``binaries``: by kernel name."""
    (logits,) = ctx.graph.outputs
    out = ctx.view(logits).storage
    assert ctx.best is not None
    lifetimes = _lifetimes(ctx.calls, (out, *(view.storage for view in ctx.best)))
    offsets, sizes = assign_offsets(lifetimes)
    number = {life.storage: i for i, life in enumerate(lifetimes)}
    kernel_number = {name: i for i, name in enumerate(ctx.kernels)}
    return CudaPlan(
        schema=CUDA_SCHEMA,
        architectures=architectures,
        vocab_size=int(logits.type.shape[1]),
        max_model_len=ctx.options.max_model_len,
        query_tokens=ctx.query_tokens,
        buckets=_buckets(ctx.buckets),
        arena_row_bytes=sizes,
        workspace_bytes=ctx.workspace_bytes,
        buffers=tuple(_buffer(life.storage, offsets) for life in lifetimes),
        pages=tuple(ctx.pages[layer] for layer in sorted(ctx.pages)),
        kernels=tuple(
            Kernel(name, name, tuple(k.params), binaries.get(name, ())) for name, k in ctx.kernels.items()
        ),
        calls=tuple(_call(ctx, c, number, kernel_number) for c in ctx.calls),
        logits=number[out],
        best=(number[ctx.best[0].storage], number[ctx.best[1].storage]),
        best_parts=ctx.best[0].access.shape[0],
    )


def _buckets(changes: set[int]) -> tuple[int, ...]:
    """Powers of two up to the last change of kernels, and the changes."""
    powers = {1 << i for i in range(max(changes, default=1).bit_length())}
    return tuple(sorted(powers | changes))


def _lifetimes(calls: list[PendingCall], results: Sequence[Storage]) -> list[Lifetime]:
    first: dict[Storage, int] = {}
    last: dict[Storage, int] = {}
    for i, call in enumerate(calls):
        for storage in buffers_of(call.choices):
            first.setdefault(storage, i)
            last[storage] = i
    last |= dict.fromkeys(results, len(calls))
    return [Lifetime(s, first[s], last[s]) for s in first]


def buffers_of(choices: Sequence[PendingChoice]) -> list[Storage]:
    """Scratch that a call touches, in order of its arguments."""
    targets = [
        a.target for choice in choices for launch in choice.launches for a in launch.args
        if isinstance(a, Pointer)
    ]  # fmt: skip
    return [t for t in dict.fromkeys(targets) if isinstance(t, Storage) and t.kind == "buffer"]


def _buffer(storage: Storage, offsets: dict[Storage, int]) -> Buffer:
    assert storage.space
    return Buffer(storage.space, storage.row_bytes, offsets[storage])


def _call(
    ctx: Lowering, call: PendingCall, number: dict[Storage, int], kernel_number: dict[str, int]
) -> CudaCall:
    def launch(pending: PendingLaunch) -> Launch:
        args = tuple(_argument(a, number) for a in pending.args)
        return Launch(kernel_number[pending.kernel], args, pending.grid)

    choices = tuple(Choice(tuple(map(launch, c.launches)), c.up_to) for c in call.choices)
    cost: Cost = call_cost(ctx, call, sum(s.row_bytes for s in buffers_of(call.choices[:1])))
    return CudaCall(choices, call.by, call.node.origin, cost)


def _argument(arg: Pointer | Count, number: dict[Storage, int]) -> Argument:
    if isinstance(arg, Count):
        return arg
    target = arg.target
    if isinstance(target, Workspace):
        return Address("workspace", 0, target.offset + arg.offset)
    if isinstance(target, PageSet):
        return Address(target.kind, target.layer, arg.offset)  # type: ignore[arg-type]
    which = number[target] if target.kind == "buffer" else target.name
    return Address(target.kind, which, arg.offset)
